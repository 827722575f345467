"""``hf_causal_lm``: a model of the transformers library, from its weights or from its config."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.models.contract import ModelSpec

if TYPE_CHECKING:
    from foundry_sdk.models.huggingface.causal_lm import HFCausalLM

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
_COMMIT: Final = r"[0-9a-f]{40}"


@attrs.frozen(kw_only=True)
class HFModelSpec(ModelSpec):
    """What models of the transformers library have in common.

    Attributes:
        pretrained_model_name_or_path: a folder, or a name on the hub.
        pretrained: take the weights, else only the config, with new initial values.
        config_overrides: replaces values of the config; mappings go into nested ones.
        trust_remote_code: run code that the repository carries; needs ``revision``.
        revision: commit, branch or tag of the hub; with remote code a whole commit hash.
        use_flash_attention_2: the same as ``attn_implementation: flash_attention_2``.
        attn_implementation: None = the fastest that is installed and fits the model.
        resize_embeddings: give the embeddings as many rows as the tokenizer has tokens; new rows
            begin as the mean of the others. ``allow_embedding_resizing`` means the same.
        init_device: where LLM Foundry would build the model; assembly decides it here.
    """

    without_effect = MappingProxyType(
        {
            "use_auth_token": "the hub's token comes from HF_TOKEN or `hf auth login`",
            "use_train_metrics": "metrics are computed from the loss, at no cost",
        }
    )

    pretrained_model_name_or_path: str = attrs.field(validator=validators.min_len(1))
    pretrained: bool = True
    config_overrides: Mapping[str, Any] = attrs.field(factory=dict)
    trust_remote_code: bool = False
    revision: str | None = None
    use_flash_attention_2: bool = False
    attn_implementation: Attention | None = None
    resize_embeddings: bool = False
    allow_embedding_resizing: bool = False
    init_device: Literal["cpu", "meta", "mixed"] = "cpu"

    def __attrs_post_init__(self) -> None:
        """Check what must hold between fields.

        Raises:
            ValueError: two of them contradict each other.
        """
        if self.trust_remote_code:
            validators.matches_re(_COMMIT)  # compiled here to keep the pattern in one place
            if self.revision is None or not _is_commit(self.revision):
                raise ValueError(
                    "trust_remote_code runs code from the hub: fix which with revision: <40 "
                    f"hexadecimal digits of a commit>, got revision {self.revision!r}"
                )
        given = self.attn_implementation
        if self.use_flash_attention_2 and given not in {None, "flash_attention_2"}:
            raise ValueError(
                f"use_flash_attention_2 contradicts attn_implementation {given!r}; leave one out"
            )
