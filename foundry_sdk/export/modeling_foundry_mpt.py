"""An MPT with any of its options, for ``transformers`` with ``trust_remote_code=True``.

This file is copied beside exported weights and needs nothing but torch and transformers. It is
written to be read and to be exact, not to be fast: every attention matrix is made.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own short name
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class FoundryMPTConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The options of the trained model, as its spec says them, under ``mpt``."""

    model_type = "foundry_mpt"

    def __init__(self, mpt: dict[str, Any] | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        self.mpt = mpt or {}
        if mpt:
            self.vocab_size = mpt["vocab_size"]
            self.hidden_size = mpt["d_model"]
            self.num_hidden_layers = mpt["n_layers"]
            self.num_attention_heads = mpt["n_heads"]
            self.max_position_embeddings = mpt["max_seq_len"]
        super().__init__(**kwargs)


def _norm(mpt: dict[str, Any], size: int) -> nn.Module:
    if mpt["norm_type"].endswith("rmsnorm"):
        return RMSNorm(size, mpt["norm_eps"])
    return nn.LayerNorm(size, eps=mpt["norm_eps"], bias=not mpt["no_bias"])


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return normalised hidden states (..., size)."""
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(hidden_states.dtype)


class Attention(nn.Module):
    """Causal self-attention with the options of ``attn_config``."""

    def __init__(self, mpt: dict[str, Any], layer: int) -> None:
        super().__init__()
        options = mpt["attn_config"]
        self.options = options
        self.layer = layer
        self.heads = mpt["n_heads"]
        self.head_dim = mpt["head_dim"] or mpt["d_model"] // self.heads
        self.kv_heads = self.heads
        if options["attn_type"] != "multihead_attention":
            self.kv_heads = options["kv_n_heads"] or 1
        bias = mpt["attention_bias"]
        bias = not mpt["no_bias"] if bias is None else bias
        sizes = [heads * self.head_dim for heads in (self.heads, self.kv_heads, self.kv_heads)]
        self.sizes = sizes
        if options["fused_qkv"]:
            self.Wqkv = nn.Linear(mpt["d_model"], sum(sizes), bias=bias)
        else:
            self.Wq, self.Wk, self.Wv = (nn.Linear(mpt["d_model"], n, bias=bias) for n in sizes)
        if options["qk_ln"] or options["qk_gn"]:
            whole = options["qk_ln"]
            self.q_ln = _norm(mpt, sizes[0] if whole else self.head_dim)
            self.k_ln = _norm(mpt, sizes[1] if whole else self.head_dim)
        self.out_proj = nn.Linear(sizes[0], mpt["d_model"], bias=not mpt["no_bias"])

    def forward(self, hidden_states: Tensor, shared: dict[str, Any], cache: Cache | None) -> Tensor:
        """Return (B, T, d_model); keys and values of these tokens go into ``cache``."""
        options = self.options
        if options["fused_qkv"]:
            query, key, value = self.Wqkv(hidden_states).split(self.sizes, dim=-1)
        else:
            query, key, value = (w(hidden_states) for w in (self.Wq, self.Wk, self.Wv))
        if options["clip_qkv"]:
            clip = options["clip_qkv"]
            query, key, value = (part.clamp(-clip, clip) for part in (query, key, value))
        if options["qk_ln"]:
            query, key = self.q_ln(query), self.k_ln(key)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (query, key, value)
        )
        if options["qk_gn"]:
            query, key = self.q_ln(query), self.k_ln(key)
        if shared["rotary"] is not None:
            query, key = (_rotate(part, *shared["rotary"]) for part in (query, key))
        if shared["query_factor"] is not None:
            query = (query * shared["query_factor"]).to(value.dtype)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        groups = self.heads // self.kv_heads
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        scale = options["softmax_scale"] or self.head_dim**-0.5
        scores = (query @ key.transpose(-1, -2)).float() * scale
        cap = options["attn_logit_softcapping"]
        if cap:
            scores = cap * torch.tanh(scores / cap)
        if shared["bias"] is not None:
            scores = scores + shared["bias"]
        scores = scores.masked_fill(~shared["mask"], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(-1).to(value.dtype) @ value
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """``mptmlp`` or ``mptglu``."""

    def __init__(self, mpt: dict[str, Any]) -> None:
        super().__init__()
        options, bias, width = mpt["ffn_config"], not mpt["no_bias"], mpt["d_model"]
        size = options["ffn_hidden_size"] or int(width * mpt["expansion_ratio"])
        self.act = dict(options["ffn_act_fn"] or {"name": "gelu"})
        self.up_proj = nn.Linear(width, size, bias=bias)
        self.down_proj = nn.Linear(size, width, bias=bias)
        self.gated = options["ffn_type"] == "mptglu"
        if self.gated:
            self.gate_proj = nn.Linear(width, size, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (B, T, d_model)."""
        up = self.up_proj(hidden_states)
        inner = self._activate(self.gate_proj(hidden_states)) * up if self.gated else None
        output: Tensor = self.down_proj(self._activate(up) if inner is None else inner)
        return output

    def _activate(self, inner: Tensor) -> Tensor:
        options = dict(self.act)
        name = options.pop("name")
        if name == "quick_gelu":
            return inner * torch.sigmoid(1.702 * inner)
        activated: Tensor = getattr(F, name)(inner, **options)
        return activated


class Block(nn.Module):
    """Pre-norm attention and feed-forward network."""

    def __init__(self, mpt: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.norm_1 = _norm(mpt, mpt["d_model"])
        self.attn = Attention(mpt, layer)
        self.norm_2 = _norm(mpt, mpt["d_model"])
        self.ffn = FeedForward(mpt)

    def forward(self, hidden_states: Tensor, shared: dict[str, Any], cache: Cache | None) -> Tensor:
        """Return (B, T, d_model)."""
        hidden_states = hidden_states + self.attn(self.norm_1(hidden_states), shared, cache)
        output: Tensor = hidden_states + self.ffn(self.norm_2(hidden_states))
        return output


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, mpt: dict[str, Any]) -> None:
        super().__init__()
        attention = mpt["attn_config"]
        self.wte = nn.Embedding(mpt["vocab_size"], mpt["d_model"])
        if mpt["learned_pos_emb"] and not (attention["alibi"] or attention["rope"]):
            self.wpe = nn.Embedding(mpt["max_seq_len"], mpt["d_model"])
        self.blocks = nn.ModuleList(Block(mpt, layer) for layer in range(mpt["n_layers"]))
        self.norm_f = _norm(mpt, mpt["d_model"])


class FoundryMPTForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """The trained model, with a cache of keys and values."""

    config_class = FoundryMPTConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["Block"]  # noqa: RUF012 - transformers wants a list

    def __init__(self, config: FoundryMPTConfig) -> None:
        super().__init__(config)
        self.transformer = Transformer(config.mpt)
        if not config.mpt["tie_word_embeddings"]:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.transformer.wte

    def _init_weights(self, module: nn.Module) -> None:
        """Leave modules as torch makes them: weights come from the files."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401 - what generate passes to any model
    ) -> CausalLMOutputWithPast:
        """Return logits float (B, T, vocab_size), the cache, and a loss where labels are given.

        Args:
            input_ids: int64 (B, T), the tokens after those in the cache.
            attention_mask: (B, cached + T), 0 = padding, on either side.
            past_key_values: the cache.
            use_cache: whether to make one.
            labels: int64 (B, T) as ``input_ids``; -100 = ignored; shifted here.
            kwargs: ignored.
        """
        del kwargs
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        total = seen + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids[:, :1]).expand(-1, total)
        real = attention_mask[:, :total].bool()
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        shared = self._shared(positions, real, seen)
        hidden_states = self.transformer.wte(input_ids)
        if hasattr(self.transformer, "wpe"):
            hidden_states = hidden_states + self.transformer.wpe(positions[:, seen:])
        for block in self.transformer.blocks:
            hidden_states = block(hidden_states, shared, past_key_values)
        logits = self._logits(self.transformer.norm_f(hidden_states))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _logits(self, hidden_states: Tensor) -> Tensor:
        mpt = self.config.mpt
        head = self.transformer.wte if mpt["tie_word_embeddings"] else self.lm_head
        logits = F.linear(hidden_states, head.weight)
        factor = mpt["logit_scale"]
        if factor is not None:
            logits = logits * (mpt["d_model"] ** -0.5 if isinstance(factor, str) else factor)
        cap = mpt["final_logit_softcapping"]
        return cap * torch.tanh(logits / cap) if cap else logits

    def _shared(self, positions: Tensor, real: Tensor, seen: int) -> dict[str, Any]:
        """Return mask, bias and tables of the new tokens against all of them."""
        mpt, options = self.config.mpt, self.config.mpt["attn_config"]
        places = torch.arange(real.shape[1], device=real.device)
        distance = (places[seen:, None] - places)[None, None]
        mask = (distance >= 0) & real[:, None, None, :]
        if options["sliding_window_size"] != -1:
            mask = mask & (distance <= options["sliding_window_size"])
        bias = rotary = factor = None
        if options["alibi"]:
            slopes = _slopes(mpt["n_heads"], options["alibi_bias_max"]).to(real.device)
            bias = -slopes[:, None, None] * distance
        new = positions[:, None, seen:, None].double()
        if options["rope"]:
            size = mpt["head_dim"] or mpt["d_model"] // mpt["n_heads"]
            length = max(real.shape[1], mpt["max_seq_len"])
            angles = new * _frequencies(options, size, length / mpt["max_seq_len"]).to(real.device)
            rotary = (angles.cos().float(), angles.sin().float())
        tuning = options["attn_temperature_tuning"]
        if tuning["attn_scale"]:
            steps = torch.floor((new + 1) / tuning["floor_scale"])
            factor = (torch.log1p(steps) * tuning["attn_scale"] + 1).float()
        return {"mask": mask, "bias": bias, "rotary": rotary, "query_factor": factor}


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(heads.dtype)


def _slopes(heads: int, bias_max: float) -> Tensor:
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** -(index * bias_max / power) for index in range(1, power + 1)]
    if power != heads:
        slopes = (slopes[1::2] + slopes[0::2])[:heads]
    return torch.tensor(slopes)


def _frequencies(options: dict[str, Any], size: int, stretch: float) -> Tensor:
    scaling = options["rope_hf_config"]
    kind = scaling["type"] if options["rope_impl"] == "hf" else "no_scaling"
    factor = scaling["factor"]
    theta = float(options["rope_theta"])
    if kind == "dynamic":
        theta *= (factor * stretch - (factor - 1)) ** (size / (size - 2))
    frequencies: Tensor = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    if kind == "linear":
        stretched: Tensor = frequencies / factor
        return stretched
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        mixed: Tensor = frequencies * (kept + (1 - kept) / factor)
        return mixed
    return frequencies
