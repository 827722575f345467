"""Toy models of several families, without dropout, as transformers makes and saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 96
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": 6},
    "qwen2": _GROUPED | {"tie_word_embeddings": True},
    "gpt_neox": _SMALL | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gemma2": _GROUPED | {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 6},
    "cohere": _GROUPED | {"logit_scale": 0.25},
    "granite": _GROUPED | {"logits_scaling": 3.0},
    "phi": _SMALL,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    },
    "mpt": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "vocab_size": VOCABULARY,
        "attn_config": {"attn_impl": "torch"},
    },
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_dropout": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "tied": {"family": "gpt2", "pretrained": True, "fused": True},
    "tied-new": {"family": "gpt2", "pretrained": False},
    "untied": {"family": "llama", "pretrained": True},
    "untied-new": {"family": "llama", "pretrained": False, "fused": True},
    "lora": {"family": "gpt2", "pretrained": True, "peft_config": LORA, "fused": True},
    "lora-all": {
        "family": "llama",
        "pretrained": True,
        "peft_config": LORA | {"target_modules": "all-linear"},
    },
    "t5": {"family": "t5", "pretrained": True, "fused": True},
    "t5-new": {"family": "t5", "pretrained": False},
}
"""Runs of ``hf_worker.py``, on one rank and on two sharded ones."""


def make(family: str, seed: int = 0) -> Any:
    """Return a model with weights far enough from zero to show every difference."""
    torch.manual_seed(seed)
    auto = transformers.AutoModelForCausalLM
    values = CONFIGS.get(family, T5)
    if values is T5:
        auto = transformers.AutoModelForSeq2SeqLM
    config = transformers.AutoConfig.for_model(family, **values)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def saved(family: str, folder: Path) -> Path:
    """Save such a model in ``folder / family`` and return that."""
    place = folder / family
    make(family).save_pretrained(place)
    return place


def rows(count: int, length: int, seed: int = 1) -> torch.Tensor:
    """Return token ids int64 (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, length), generator=generator)
