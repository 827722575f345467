"""Keys of LLM Foundry that have no field here: what each would do, and what happens instead."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from foundry_sdk.callbacks.unsupported import NOT_SUPPORTED
from foundry_sdk.specs.places import Path


@attrs.frozen(kw_only=True)
class LegacyKey:
    """A key that old files have.

    Attributes:
        neutral: values that ask for what is done here anyway; accepted without a word.
        notice: why another value is accepted without effect.
        refusal: why another value is an error, and what to use; exactly one of the two is set.
    """

    neutral: tuple[object, ...] = (None,)
    notice: str | None = None
    refusal: str | None = None


@attrs.frozen(kw_only=True)
class Translated:
    """What is left of a document once the keys below are taken out.

    Attributes:
        values: for structuring.
        notices: accepted keys that have no effect.
        mistakes: refused ones.
        origins: paths in ``values`` that stand for another one in the document.
    """

    values: dict[str, Any]
    notices: tuple[tuple[Path, str], ...]
    mistakes: tuple[tuple[Path, str], ...]
    origins: Mapping[Path, Path]


def _unsupported(instead: str = "", neutral: tuple[object, ...] = (None, False)) -> LegacyKey:
    text = "not supported here" + (f"; {instead}" if instead else "")
    return LegacyKey(neutral=neutral, refusal=text)


def _no_effect(why: str, neutral: tuple[object, ...] = (None,)) -> LegacyKey:
    return LegacyKey(neutral=neutral, notice=f"accepted without effect: {why}")


_ALLOCATOR: Final = "the allocator is set up by PYTORCH_CUDA_ALLOC_CONF in the environment"
_FSDP2: Final = "FSDP2 decides this itself"
_FIXED_NAMES: Final = "checkpoints have fixed names, and the newest is found by itself"
_NO_ICL: Final = "in-context learning tasks are not evaluated during a run"

TOP_LEVEL: Final[Mapping[str, LegacyKey]] = MappingProxyType(
    {
        "variables": LegacyKey(neutral=(), notice=""),
        "code_paths": _unsupported(
            "a spec runs no code: install it as a plugin (see `foundry plugins`)", (None, [])
        ),
        "max_split_size_mb": _no_effect(_ALLOCATOR),
        "expandable_segments": _no_effect(_ALLOCATOR, (None, True)),
        "cuda_load_lazy": _no_effect("set CUDA_MODULE_LOADING in the environment", (None, False)),
        "tp_config": _unsupported("use fsdp_config"),
        "accumulate_train_batch_on_tokens": LegacyKey(
            neutral=(None, True),
            refusal="the loss is always the mean over all tokens of the global batch",
        ),
        "icl_tasks": _unsupported(_NO_ICL, (None, [])),
        "icl_tasks_str": _unsupported(_NO_ICL),
        "icl_seq_len": _no_effect(_NO_ICL),
        "icl_subset_num_batches": _no_effect(_NO_ICL),
        "eval_gauntlet": _unsupported(_NO_ICL),
        "eval_gauntlet_str": _unsupported(_NO_ICL),
        "eval_loaders": _unsupported("use eval_loader, which takes a list"),
        "save_latest_filename": _no_effect(_FIXED_NAMES),
        "save_filename": _no_effect(_FIXED_NAMES),
        "train_subset_num_batches": _unsupported("say max_duration in ba", (None, -1)),
        "save_ignore_keys": _unsupported("use save_weights_only", (None, [])),
        "load_ignore_keys": _unsupported("use load_weights_only", (None, [])),
        "only_hf_checkpoint": _unsupported("use `foundry export` on the run"),
        "only_composer_checkpoint": _unsupported("use `foundry export` on the run"),
        "spin_dataloaders": _no_effect("loaders go on from a saved position", (None, False)),
        "flatten_metadata": _no_effect("metadata is kept as it is", (None, False)),
        "profiler": _unsupported(),
        "device_train_batch_size": _unsupported("use global_train_batch_size"),
        "device_train_grad_accum": _unsupported("use device_train_microbatch_size"),
        **dict.fromkeys(
            ("max_steps", "train_steps", "total_steps", "train_iters"),
            _unsupported("the run's length is max_duration alone: a number of steps is '100ba'"),
        ),
        **dict.fromkeys(
            ("epochs", "num_epochs", "max_epochs", "num_train_epochs"),
            _unsupported("the run's length is max_duration alone: a number of epochs is '2ep'"),
        ),
        "n_gpus": _unsupported("the launcher decides the number of devices"),
    }
)

FSDP: Final[Mapping[str, LegacyKey]] = MappingProxyType(
    {
        "auto_wrap": _unsupported("each block is wrapped", (None, True)),
        "backward_prefetch": _no_effect(_FSDP2),
        "backward_prefetch_limit": _no_effect(_FSDP2),
        "forward_prefetch": _no_effect(_FSDP2),
        "forward_prefetch_limit": _no_effect(_FSDP2),
        "limit_all_gathers": _no_effect(_FSDP2),
        "use_orig_params": _no_effect("FSDP2 always keeps the original parameters"),
        "sync_module_states": _no_effect("initial values are the same on every rank"),
        "load_monolith_rank0_only": _no_effect("each rank reads its own part of a checkpoint"),
        "sharded_ckpt_prefix_dir": _no_effect(_FIXED_NAMES),
        "verbose": _no_effect("`foundry plan` shows the bytes per rank", (None, False)),
        "te_checkpoint_wrapper": _unsupported(),
        "te_shard_fp8_weight": _unsupported(),
        "keep_low_precision_grads": _unsupported("use mixed_precision: PURE"),
        "ignored_modules": _unsupported(neutral=(None, [])),
        "process_group": _unsupported("use sharding_strategy: HYBRID_SHARD"),
        "device_mesh": _unsupported("use sharding_strategy: HYBRID_SHARD"),
        "data_parallel_shard_degree": _unsupported(
            "use sharding_strategy: HYBRID_SHARD", (None, -1)
        ),
        "data_parallel_replicate_degree": _unsupported("use sharding_strategy: HYBRID_SHARD"),
        "reshard_after_forward": _unsupported("use sharding_strategy: SHARD_GRAD_OP", (None, True)),
        "load_planner": _unsupported(),
        "save_planner": _unsupported(),
    }
)

ALGORITHMS: Final[Mapping[str, LegacyKey]] = MappingProxyType(
    {
        "alibi": _unsupported("use model.attn_config.alibi", ()),
        "gated_linear_units": _unsupported("use model.ffn_config.ffn_type: mptglu", ()),
        "low_precision_layernorm": _unsupported("use model.norm_type: low_precision_layernorm", ()),
    }
)

COMPILE: Final[Mapping[str, LegacyKey]] = MappingProxyType(
    {
        "backend": _unsupported("the backend is inductor", (None, "inductor")),
        "options": _unsupported("use mode", (None, {})),
        "disable": _unsupported("use enabled: false", (None, False)),
    }
)

_SECTIONS: Final = (
    ((), TOP_LEVEL),
    (("fsdp_config",), FSDP),
    (("algorithms",), ALGORITHMS),
    (("compile_config",), COMPILE),
)

COMPONENTS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        **{("callback", kind): instead for kind, instead in NOT_SUPPORTED.items()},
        ("logger", "mosaicml"): "use wandb, mlflow, comet or tensorboard",
        ("logger", "in_memory_logger"): "use inmemory",
        ("model", "finetune_embedding_model"): "use mpt_causal_lm",
        ("model", "contrastive_lm"): "use mpt_causal_lm",
    }
)
"""(family, kind) of LLM Foundry → what to use where no plugin offers that kind."""


def translate(values: Mapping[str, Any]) -> Translated:
    """Take out the keys above, and move what has another place here.

    ``model.loss_fn`` becomes ``loss``, ``model.master_weights_dtype`` ``weights``.
    """
    left = dict(values)
    notices: list[tuple[Path, str]] = []
    mistakes: list[tuple[Path, str]] = []
    for section, keys in _SECTIONS:
        table = left if not section else left.get(section[0])
        if not isinstance(table, dict):
            continue
        for key in [key for key in table if key in keys]:
            _judge(keys[key], table[key], (*section, key), notices, mistakes)
        kept = {key: value for key, value in table.items() if key not in keys}
        if section:
            left[section[0]] = kept
        else:
            left = kept
    origins = _move_loss(left, mistakes) | _move_weights(left, mistakes)
    return Translated(
        values=left, notices=tuple(notices), mistakes=tuple(mistakes), origins=origins
    )


def _judge(
    rule: LegacyKey,
    value: object,
    path: Path,
    notices: list[tuple[Path, str]],
    mistakes: list[tuple[Path, str]],
) -> None:
    if any(value is ok or (type(value) is type(ok) and value == ok) for ok in rule.neutral):
        return
    if rule.refusal is not None:
        mistakes.append((path, rule.refusal))
    elif rule.notice:
        notices.append((path, rule.notice))


def _move_loss(left: dict[str, Any], mistakes: list[tuple[Path, str]]) -> dict[Path, Path]:
    model = left.get("model")
    if not isinstance(model, dict) or "loss_fn" not in model:
        return {}
    left["model"] = {key: value for key, value in model.items() if key != "loss_fn"}
    name, loss = model["loss_fn"], left.get("loss")
    if name is None:
        return {}
    if loss is None:
        left["loss"] = {"name": name}
        return {("loss", "name"): ("model", "loss_fn"), ("loss",): ("model", "loss_fn")}
    if isinstance(loss, dict) and loss.get("name") != name:
        mistakes.append((("model", "loss_fn"), f"{name!r} here, but {loss.get('name')!r} in loss"))
    return {}


def _move_weights(left: dict[str, Any], mistakes: list[tuple[Path, str]]) -> dict[Path, Path]:
    model, place = left.get("model"), ("model", "master_weights_dtype")
    if not isinstance(model, dict) or place[1] not in model:
        return {}
    left["model"] = {key: value for key, value in model.items() if key != place[1]}
    dtype = model[place[1]]
    if dtype is None:
        return {}
    if dtype not in {"bf16", "bfloat16"}:
        mistakes.append((place, f"{dtype!r} is not supported here; use weights: bf16"))
    elif left.setdefault("weights", "bf16") != "bf16":
        mistakes.append((place, f"{dtype!r} here, but {left['weights']!r} in weights"))
    return {("weights",): place}
