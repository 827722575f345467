"""Initial values of MPT's parameters, by kind of layer (``init_config``)."""

import math

import torch
from torch import Tensor, nn

from foundry_sdk.models.init import Draw, Drawn, copy_shard, draw_parameters
from foundry_sdk.models.mpt.attention import Attention
from foundry_sdk.models.mpt.norms import RMSNorm
from foundry_sdk.models.mpt.options import InitSpec
from foundry_sdk.models.mpt.spec import MPTSpec


def initialize(model: nn.Module, spec: MPTSpec, seed: int) -> None:
    """Fill every parameter of ``model`` in place.

    Raises:
        NotImplementedError: a layer with parameters of its own has no rule.
    """
    heads = _projections_by_head(model)
    drawn: list[Drawn] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            drawn += _linear(module, name, spec, block_rows=heads.get(id(module)))
        elif isinstance(module, nn.Embedding):
            drawn.append((module.weight, f"{name}.weight", _embedding_draw(module.weight, spec)))
        elif isinstance(module, nn.LayerNorm | RMSNorm):
            for part, parameter in module.named_parameters(recurse=False):
                value = 1.0 if part == "weight" else 0.0
                copy_shard(parameter, torch.full(parameter.shape, value))
        elif next(module.parameters(recurse=False), None) is not None:
            raise NotImplementedError(f"{name} ({type(module).__name__}) has no rule for its start")
    draw_parameters(drawn, seed=seed)


def _projections_by_head(model: nn.Module) -> dict[int, int]:
    """Return rows per head, by id, of the layers whose heads are drawn one by one."""
    found = {}
    for module in model.modules():
        if isinstance(module, Attention):
            for name in ("Wqkv", "Wq", "Wk", "Wv"):
                layer = getattr(module, name, None)
                if layer is not None:
                    found[id(layer)] = module.head_dim
    return found


def _linear(layer: nn.Linear, name: str, spec: MPTSpec, *, block_rows: int | None) -> list[Drawn]:
    """Return how a weight is drawn; residual projections are divided; the bias is zero."""
    rows, columns = layer.weight.shape
    config = spec.init_config
    draw = _scheme_draw(config, spec.d_model, fan_in=columns, fan_out=block_rows or rows)
    if name.rpartition(".")[2] in {"out_proj", "down_proj"}:
        draw = _divided(draw, _residual_divisor(spec))
    drawn = [(layer.weight, f"{name}.weight", draw)]
    if layer.bias is None:
        return drawn
    if config.name == "default_":
        limit = 1 / math.sqrt(columns)
        return [*drawn, (layer.bias, f"{name}.bias", _uniform(-limit, limit))]
    copy_shard(layer.bias, torch.zeros(layer.bias.shape))
    return drawn


def _residual_divisor(spec: MPTSpec) -> float:
    config = spec.init_config
    if config.name == "default_":
        return 1.0
    if config.name == "neox_init_":
        return spec.n_layers / math.sqrt(10)
    if isinstance(config.init_div_is_residual, bool):
        return math.sqrt(2 * spec.n_layers) if config.init_div_is_residual else 1.0
    return config.init_div_is_residual


def _embedding_draw(weight: Tensor, spec: MPTSpec) -> Draw:
    config = spec.init_config
    if config.emb_init_std is not None:
        return _normal(config.emb_init_std)
    limits = config.emb_init_uniform_lim
    if limits is not None:
        low, high = limits if isinstance(limits, tuple) else (-limits, limits)
        return _uniform(low, high)
    if config.name == "default_":
        return _normal(1.0)
    rows, columns = weight.shape
    return _scheme_draw(config, spec.d_model, fan_in=columns, fan_out=rows)


def _scheme_draw(config: InitSpec, d_model: int, *, fan_in: int, fan_out: int) -> Draw:
    """Return how ``init_config.name`` draws a weight of these fans.

    He et al. 2015 (kaiming), Glorot and Bengio 2010 (xavier), Nguyen and Salazar 2019 (small).
    """
    if config.name == "default_":
        return _uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    if config.name == "baseline_" and config.init_std is not None:
        return _normal(config.init_std)
    if config.name in {"small_init_", "neox_init_"}:
        return _normal(math.sqrt(2 / (5 * d_model)))
    if config.name.startswith("kaiming"):
        gain = nn.init.calculate_gain(config.init_nonlinearity, config.init_gain)  # type: ignore[arg-type]
        std = gain / math.sqrt(fan_in if config.fan_mode == "fan_in" else fan_out)
    else:
        std = config.init_gain * math.sqrt(2 / (fan_in + fan_out))
    if "uniform" in config.name:
        return _uniform(-math.sqrt(3) * std, math.sqrt(3) * std)
    return _normal(std)


def _normal(std: float) -> Draw:
    return lambda whole, generator: whole.normal_(0.0, std, generator=generator)


def _uniform(low: float, high: float) -> Draw:
    return lambda whole, generator: whole.uniform_(low, high, generator=generator)


def _divided(draw: Draw, divisor: float) -> Draw:
    def divide(whole: Tensor, generator: torch.Generator) -> None:
        draw(whole, generator)
        whole.div_(divisor)

    return divide
