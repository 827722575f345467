"""Which attention a transformers model computes with."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from foundry_sdk.errors import SpecError
from foundry_sdk.models.huggingface.spec import Attention

_PACKAGES: Final = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
_SUPPORT: Final = {
    "sdpa": ("_supports_sdpa",),
    "flash_attention_2": ("_supports_flash_attn", "_supports_flash_attn_2"),
    "flash_attention_3": ("_supports_flash_attn", "_supports_flash_attn_3"),
    "flex_attention": ("_supports_flex_attn",),
}
"""Class attributes of transformers models, of version 5 and of 4."""
_MASKS: Final = (
    *("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask"),
)
_CAPPED: Final = "attn_logit_softcapping"
_ISOLATING: Final = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def choose_attention(
    auto: Any,  # noqa: ANN401 - a class such as AutoModelForCausalLM
    config: Any,  # noqa: ANN401
    wanted: Attention | None,
) -> tuple[Attention, str | None]:
    """Return the attention to use, and why where ``wanted`` leaves it open.

    Raises:
        SpecError: the wanted one is not installed, or not for this model.
    """
    cls = model_class(auto, config)
    if wanted is not None:
        _check_wanted(wanted, cls, config)
        return wanted, None
    flash = _has_package("flash_attention_2") and torch.cuda.is_available()
    if flash and _supports(cls, "flash_attention_2"):
        return "flash_attention_2", "flash_attention_2: the package flash-attn is installed"
    if getattr(config.get_text_config(), _CAPPED, None) is not None:
        return "eager", f"eager: {_CAPPED} is in no other attention without the package flash-attn"
    if _supports(cls, "sdpa"):
        return "sdpa", "sdpa: torch's fused kernels"
    return "eager", f"eager: {cls.__name__} has no other"


def model_class(auto: Any, config: Any) -> Any:  # noqa: ANN401
    """Return the class of ``config``'s model, or the config's own where code is remote.

    Raises:
        SpecError: there is none of this kind.
    """
    mapping = auto._model_mapping
    if type(config) in mapping:
        found = mapping[type(config)]
        return found[0] if isinstance(found, tuple | list) else found
    if getattr(config, "auto_map", None):
        return type(config)
    raise SpecError(
        f"model: a {type(config).__name__} makes no {auto.__name__.removeprefix('AutoModelFor')}; "
        f"its model_type is {config.model_type!r}"
    )


def why_not_isolated(module: Any) -> str | None:  # noqa: ANN401
    """Return None where position ids that begin again keep packed documents apart, else why not.

    Transformers makes a block-diagonal mask of such positions where a model hands them to its
    common mask function; whether this one does is seen by running it up to there.

    Args:
        module: a transformers model with parameters on the meta device.
    """
    base = module.base_model
    config = module.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - _ISOLATING
    if kinds or getattr(module, "_is_stateful", False):
        return f"it has layers that carry a state ({', '.join(sorted(kinds)) or 'recurrent'})"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return "it takes no position ids"
    code = sys.modules[type(base).__module__]
    original = {name: getattr(code, name) for name in _MASKS if hasattr(code, name)}
    if not original:
        return "it makes its attention masks in its own way"
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    positions = torch.zeros_like(ids)
    for name in original:
        setattr(code, name, _stop)
    try:
        base(input_ids=ids, position_ids=positions, use_cache=False)
    except _Reached as reached:
        if reached.positions is positions:
            return None
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"its masks cannot be looked at ({type(error).__name__})"
    finally:
        for name, function in original.items():
            setattr(code, name, function)
    return "its attention masks do not follow position ids"


@contextmanager
def unread_mask(attention: Attention, ones: Tensor) -> Iterator[None]:
    """Have transformers take the padding mask ``ones`` for one without padding, unread.

    It would look into the mask to see that nothing is masked, which waits for the device in each
    forward. Without any mask it would look into the positions instead.

    Args:
        attention: of the model.
        ones: bool (B, S), True everywhere.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as FUNCTIONS

    original = FUNCTIONS[attention]

    def make(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Any:  # noqa: ANN401
        base = None if attention_mask is None else attention_mask._base
        mask = None if attention_mask is ones or base is ones else attention_mask
        return original(*args, attention_mask=mask, **options)

    FUNCTIONS[attention] = make
    try:
        yield
    finally:
        FUNCTIONS[attention] = original


class _Reached(Exception):  # noqa: N818 - no error: where to stop
    """Carries the positions that a mask was asked for with."""

    def __init__(self, positions: object) -> None:
        super().__init__()
        self.positions = positions


def _stop(*args: object, **kwargs: object) -> None:
    del args
    raise _Reached(kwargs.get("position_ids"))


def _check_wanted(wanted: Attention, cls: Any, config: Any) -> None:  # noqa: ANN401
    option = f"model.attn_implementation: {wanted}"
    if wanted in _PACKAGES and not _has_package(wanted):
        raise SpecError(
            f"{option} needs the package {_PACKAGES[wanted][1]}, which is not installed here; "
            "leave the option out to take the fastest that is"
        )
    if not _supports(cls, wanted):
        there = [name for name in _SUPPORT if name not in _PACKAGES or _has_package(name)]
        others = ["eager", *(name for name in there if _supports(cls, name))]
        raise SpecError(f"{option} is not there for {cls.__name__}; use {' or '.join(others)}")
    if wanted == "sdpa" and getattr(config.get_text_config(), _CAPPED, None) is not None:
        raise SpecError(f"{option} would leave out the model's {_CAPPED}; use eager")


def _supports(cls: Any, name: str) -> bool:  # noqa: ANN401
    return name == "eager" or any(getattr(cls, flag, False) for flag in _SUPPORT[name])


def _has_package(name: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[name][0]) is not None
