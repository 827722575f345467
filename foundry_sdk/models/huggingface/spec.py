"""``hf_causal_lm``: a model of the transformers library, from its weights or from its config."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.models.contract import ModelSpec

if TYPE_CHECKING:
    from foundry_sdk.models.huggingface.causal_lm import HFCausalLM
    from foundry_sdk.models.huggingface.mpt import ImportedMPT
    from foundry_sdk.models.huggingface.seq2seq import HFSeq2Seq
    from foundry_sdk.models.huggingface.skeleton import Around, Skeleton
    from foundry_sdk.models.mpt.spec import MPTSpec

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
_UNSUPPORTED: Final = {
    "modules_to_save": "only adapters are trained",
    "use_dora": "its magnitudes come from weights that may be sharded",
    "trainable_token_indices": "only adapters are trained",
    "target_parameters": "adapters are put on layers",
    "layer_replication": "the model keeps its layers",
}
_QUANTIZATION: Final[Mapping[str, tuple[object, ...] | None]] = MappingProxyType(
    {
        "load_in_4bit": (True,),
        "bnb_4bit_quant_type": ("nf4", "fp4"),
        "bnb_4bit_use_double_quant": (True, False),
        "bnb_4bit_compute_dtype": ("float32", "bfloat16", "float16"),
        "llm_int8_skip_modules": None,
    }
)
"""Options of ``quantization_config`` and their values."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@attrs.frozen(kw_only=True)
class HFModelSpec(ModelSpec):
    """What models of the transformers library have in common.

    Names and defaults are LLM Foundry's, except that remote code is off by default and that the
    attention is chosen by what is installed.

    Attributes:
        pretrained_model_name_or_path: a folder, or a name on the hub.
        pretrained: take the weights; else only the config, and new initial values.
        config_overrides: replaces values of the config; a mapping goes into a nested one.
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
            "use_train_metrics": "metrics come from the loss, at no cost",
            "additional_train_metrics": "metrics come from the loss",
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
        if self.trust_remote_code and not _COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                "trust_remote_code runs code from the hub, so it needs revision: <40 hexadecimal "
                f"digits of the commit that was looked at>, got {self.revision!r}"
            )
        given = self.attn_implementation
        if self.use_flash_attention_2 and given not in {None, "flash_attention_2"}:
            raise ValueError(
                f"use_flash_attention_2 contradicts attn_implementation {given!r}; leave one out"
            )

    @property
    def attention(self) -> Attention | None:
        """The attention that is asked for; None = the fastest."""
        return "flash_attention_2" if self.use_flash_attention_2 else self.attn_implementation

    @property
    def saves_adapters_only(self) -> bool:
        """Whether checkpoints hold adapters and nothing else."""
        return False

    @property
    def trained_adapters(self) -> str | None:
        """Where adapters are read from; None = they are new, or there are none."""
        return None

    def unquantized(self) -> "HFModelSpec":
        """Return this spec with every weight as it is in the files."""
        return self

    @property
    def resizes(self) -> bool:
        """Whether the embeddings follow the tokenizer."""
        return self.resize_embeddings or self.allow_embedding_resizing

    def for_vocabulary(self, tokens: int) -> "HFModelSpec":
        """Return this spec with room for ``tokens`` token ids where it may make room."""
        if not self.resizes:
            return self
        from foundry_sdk.models.huggingface.source import find_source

        config = find_source(self).config()
        present = int(config.get_text_config().vocab_size)
        if present >= tokens:
            return self
        return attrs.evolve(self, config_overrides={**self.config_overrides, "vocab_size": tokens})

    def parameters(self) -> int:
        """Return the number of parameters, tied ones once; reads the config."""
        count: int = sum(p.numel() for p in self.skeleton().module.parameters())
        return count

    def flops_per_token(self, sequence_length: int) -> int | None:
        """Return 6 N + 12 n_layers d_model S, N without experts that a token does not pass."""
        skeleton = self.skeleton()
        config = skeleton.module.config.get_text_config()
        attention: int = config.num_hidden_layers * 2 * 2 * config.hidden_size * sequence_length
        return 3 * (2 * skeleton.active_parameters() + attention)

    @abstractmethod
    def skeleton(self, around: "Around | None" = None) -> "Skeleton":
        """Return the model with parameters on the meta device and buffers on the CPU.

        Args:
            around: see ``make_skeleton``.

        Raises:
            SpecError: the config cannot be read, or an override is none of its values.
        """


@attrs.frozen(kw_only=True)
class HFCausalLMSpec(HFModelSpec):
    """A decoder of the transformers library.

    Attributes:
        load_in_8bit: not supported.
        peft_config: ``peft_type: LORA``, ``task_type: CAUSAL_LM``, and what ``peft.LoraConfig``
            takes; only the adapters are trained then.
        pretrained_lora_id_or_path: go on with the adapters in this folder (or of this name on the
            hub), which also says their config.
        should_save_peft_only: leave the weights under adapters out of checkpoints: they are read
            again from where they came from.
        quantization_config: keep the weights under adapters in 4 bits (QLoRA, Dettmers et al.
            2023): ``load_in_4bit: true`` and what transformers' ``BitsAndBytesConfig`` says of 4
            bits. Needs the package bitsandbytes; not sharded.
    """

    kind = "hf_causal_lm"

    load_in_8bit: bool = False
    peft_config: Mapping[str, Any] | None = None
    pretrained_lora_id_or_path: str | None = None
    should_save_peft_only: bool = True
    quantization_config: Mapping[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        """Check what must hold between fields.

        Raises:
            ValueError: two of them contradict each other, or one is not supported.
        """
        super().__attrs_post_init__()
        if self.load_in_8bit:
            raise ValueError(
                "load_in_8bit: weights of 8 bits cannot be trained; leave it out, or train "
                "adapters on weights of 4 bits (quantization_config: {load_in_4bit: true})"
            )
        if self.peft_config is not None:
            if self.pretrained_lora_id_or_path is not None:
                raise ValueError(
                    "peft_config: the adapters in pretrained_lora_id_or_path have their config "
                    "there; leave one of the two out"
                )
            check_peft_config(self.peft_config)
        if self.quantization_config is not None:
            self._check_quantization(self.quantization_config)

    def _check_quantization(self, config: Mapping[str, Any]) -> None:
        check_quantization_config(config)
        for name, holds in (
            ("peft_config", self.has_adapters),
            ("pretrained: true", self.pretrained),
            ("should_save_peft_only: true", self.should_save_peft_only),
        ):
            if not holds:
                raise ValueError(
                    "quantization_config: weights of 4 bits stay as they are and only adapters on "
                    f"them are trained and saved, so it needs {name}"
                )

    @property
    def has_adapters(self) -> bool:
        """Whether there are adapters, and they alone are trained."""
        return self.peft_config is not None or self.pretrained_lora_id_or_path is not None

    @property
    def saves_adapters_only(self) -> bool:
        """Whether checkpoints hold adapters and nothing else."""
        return self.has_adapters and self.should_save_peft_only

    @property
    def trained_adapters(self) -> str | None:
        """Where adapters are read from; None = they are new, or there are none."""
        return self.pretrained_lora_id_or_path

    def unquantized(self) -> "HFCausalLMSpec":
        """Return this spec with every weight as it is in the files."""
        return attrs.evolve(self, quantization_config=None)

    def adapter_config(self) -> Mapping[str, Any] | None:
        """Return what describes the adapters: given here, or read from their folder.

        Raises:
            SpecError: the folder has none, or an option is not supported here.
        """
        if self.pretrained_lora_id_or_path is None:
            return self.peft_config
        from foundry_sdk.models.huggingface.adapters import read_adapter_config

        return read_adapter_config(self.pretrained_lora_id_or_path)

    def skeleton(self, around: "Around | None" = None) -> "Skeleton":
        """Return the model with parameters on the meta device and buffers on the CPU."""
        from foundry_sdk.models.huggingface.skeleton import make_skeleton
        from foundry_sdk.models.huggingface.source import find_source

        return make_skeleton(
            find_source(self),
            "AutoModelForCausalLM",
            self.attention,
            adapter=self.adapter_config(),
            quantization=self.quantization_config,
            around=around,
        )

    def for_vocabulary(self, tokens: int) -> HFModelSpec:
        """Return this spec with room for ``tokens`` token ids where it may make room."""
        return super().for_vocabulary(tokens) if self.as_mpt() is None else self

    def parameters(self) -> int:
        """Return the number of parameters, tied ones once; reads the config."""
        mpt = self.as_mpt()
        return super().parameters() if mpt is None else mpt.parameters()

    def flops_per_token(self, sequence_length: int) -> int | None:
        """Return 6 N + 12 n_layers d_model S, N without experts that a token does not pass."""
        described: ModelSpec | None = self.as_mpt()
        if described is not None:
            return described.flops_per_token(sequence_length)
        return super().flops_per_token(sequence_length)

    def as_mpt(self) -> "MPTSpec | None":
        """Return the ``mpt_causal_lm`` that equals the config, if it is of an MPT.

        Raises:
            SpecError: the config, or an override, has what no ``mpt_causal_lm`` has.
        """
        from foundry_sdk.models.huggingface.mpt import mpt_spec
        from foundry_sdk.models.huggingface.source import find_source

        return mpt_spec(find_source(self))

    def build(self, *, device: str) -> "HFCausalLM | ImportedMPT":
        """Return the model with float32 parameters of no particular values on ``device``.

        An MPT becomes the SDK's own, whatever code its folder carries.
        """
        from foundry_sdk.models.huggingface.causal_lm import HFCausalLM
        from foundry_sdk.models.huggingface.mpt import imported

        mpt = self.as_mpt()
        if mpt is not None:
            return imported(self, mpt, device=device)
        if self.quantization_config is not None and device == "meta":
            from foundry_sdk.errors import SpecError

            raise SpecError(
                "model.quantization_config: weights of 4 bits are not sharded here; leave "
                "fsdp_config out, so that each process has all of them, or quantization_config"
            )
        return HFCausalLM(self, device=device)


@attrs.frozen(kw_only=True)
class HFSeq2SeqSpec(HFModelSpec):
    """An encoder-decoder of the transformers library, such as T5."""

    kind = "hf_t5"

    def encoder_decoder(self) -> bool:
        """Return True."""
        return True

    def flops_per_token(self, sequence_length: int) -> None:
        """Return None: a token passes the encoder or the decoder, and batches mix them."""
        del sequence_length

    def skeleton(self, around: "Around | None" = None) -> "Skeleton":
        """Return the model with parameters on the meta device and buffers on the CPU."""
        from foundry_sdk.models.huggingface.skeleton import make_skeleton
        from foundry_sdk.models.huggingface.source import find_source

        return make_skeleton(
            find_source(self), "AutoModelForSeq2SeqLM", self.attention, around=around
        )

    def build(self, *, device: str) -> "HFSeq2Seq":
        """Return the model with float32 parameters of no particular values on ``device``."""
        from foundry_sdk.models.huggingface.seq2seq import HFSeq2Seq

        return HFSeq2Seq(self, device=device)


def check_quantization_config(config: Mapping[str, Any]) -> None:
    """Check what can be checked without ``bitsandbytes``.

    Raises:
        ValueError: an option is unknown, or has another value than the ones that there are.
    """
    for key, value in config.items():
        if key not in _QUANTIZATION:
            raise ValueError(
                f"quantization_config.{key} is not supported here; there are "
                f"{', '.join(_QUANTIZATION)}"
            )
        choices = _QUANTIZATION[key]
        if choices is not None and value not in choices:
            expected = " or ".join(map(repr, choices))
            raise ValueError(f"quantization_config.{key}: expected {expected}, got {value!r}")
    if not config.get("load_in_4bit"):
        raise ValueError("quantization_config: expected load_in_4bit: true")


def check_peft_config(config: Mapping[str, Any]) -> None:
    """Check what can be checked without ``peft``.

    Raises:
        ValueError: another kind of adapter or task, or an option that is not supported here.
    """
    for key, value in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        if str(config.get(key, "")).upper() != value:
            raise ValueError(f"peft_config.{key}: expected {value}, got {config.get(key)!r}")
    for key, reason in _UNSUPPORTED.items():
        if config.get(key):
            raise ValueError(f"peft_config.{key} is not supported here: {reason}")
    if config.get("init_lora_weights", True) not in {True, "gaussian"}:
        raise ValueError(
            "peft_config.init_lora_weights: expected true or 'gaussian', got "
            f"{config['init_lora_weights']!r}"
        )
