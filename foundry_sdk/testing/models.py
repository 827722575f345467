"""Checks of models: shapes, causality, and initial values that no device changes."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.testing.failure import ConformanceError, expect, name_of, same_bits

_SEQUENCES = 2
_LONGEST = 8
_SEED = 3


def check_model(spec: ModelSpec) -> None:
    """Check a decoder that is small enough to be built several times on a CPU.

    Raises:
        ConformanceError: something is not as training, sharding or the fused loss need it.
    """
    model = spec.build(device="cpu")
    _check_parts(spec, model)
    model.init_weights(_SEED)
    model.eval()
    batch = _batch(spec, model)
    _check_outputs(spec, model, batch)
    _check_causality(spec, model, batch)
    _check_initial_values(spec, model, batch)
    _check_gradients(spec, model, batch)


def _batch(spec: ModelSpec, model: LanguageModel) -> Batch:
    limits = (spec.max_sequence_length(), model.max_sequence_length())
    length = min([_LONGEST, *(limit for limit in limits if limit is not None)])
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.vocab_size, (_SEQUENCES, length + 1), generator=generator)
    return Batch(input_ids=tokens[:, :-1].clone(), labels=tokens[:, 1:].clone())


def _check_parts(spec: ModelSpec, model: LanguageModel) -> None:
    expect(
        isinstance(model, LanguageModel),
        spec,
        f"build must return a LanguageModel, got {type(model).__name__}",
    )
    expect(
        isinstance(getattr(model, "vocab_size", None), int),
        spec,
        "set self.vocab_size, the number of logits of a token",
    )
    named = dict(model.named_parameters())
    others = [name for name, parameter in named.items() if parameter.dtype != torch.float32]
    expect(
        not others,
        spec,
        f"{', '.join(others)}: parameters are made in float32; the run's precision casts them",
    )
    counted, said = sum(p.numel() for p in named.values()), spec.parameters()
    expect(
        said in {None, counted},
        spec,
        f"parameters() says {said}, but the model has {counted}, tied ones once",
    )
    expect(
        spec.vocabulary() in {None, model.vocab_size},
        spec,
        f"vocabulary() says {spec.vocabulary()}, the model's vocab_size {model.vocab_size}",
    )
    modules = {id(module) for module in model.modules()}
    expect(
        all(id(block) in modules for block in (*model.blocks(), *model.recomputed_blocks())),
        spec,
        "blocks() and recomputed_blocks() must return modules of the model itself",
    )
    flops = spec.flops_per_token(_LONGEST)
    expect(
        flops is None or (isinstance(flops, int) and flops > 0),
        spec,
        f"flops_per_token must be a whole number or None, got {flops!r}",
    )
    try:
        json.dumps(model.config(), default=_in_json)
    except (TypeError, ValueError) as error:
        raise ConformanceError(f"{name_of(spec)}: config() is no JSON: {error}") from error


def _in_json(value: object) -> Any:  # noqa: ANN401 - whatever JSON has for it
    """Take mappings that are not dicts, as specs have them."""
    return dict(value)  # type: ignore[call-overload]


def _check_outputs(spec: ModelSpec, model: LanguageModel, batch: Batch) -> None:
    hidden = _hidden(model, batch)
    shape = tuple(batch.labels.shape)
    expect(
        hidden.dim() == 3 and tuple(hidden.shape[:2]) == shape,
        spec,
        f"forward must return hidden states {(*shape, 'H')}, got {tuple(hidden.shape)}",
    )
    with torch.no_grad():
        logits = model.logits(hidden)
    expect(
        tuple(logits.shape) == (*shape, model.vocab_size),
        spec,
        f"logits must be {(*shape, model.vocab_size)}, got {tuple(logits.shape)}",
    )
    expect(
        same_bits(hidden, _hidden(model, batch)),
        spec,
        "in evaluation mode the same batch gives other hidden states the second time; keep no "
        "state in forward, and apply dropout only where self.training",
    )
    expect(logits.isfinite().all(), spec, "logits are not finite after init_weights")
    head = model.head_weight()
    if head is None:
        return
    tensors = {id(parameter) for parameter in model.parameters()}
    expect(
        id(head) in tensors,
        spec,
        "head_weight() must return the parameter itself, no copy or transpose of it; return None "
        "where the logits are made in another way",
    )
    made = model.head_scale() * (hidden @ head.detach().T)
    cap = model.head_softcap()
    made = made if cap is None else cap * torch.tanh(made / cap)
    expect(
        torch.allclose(made, logits, rtol=1e-4, atol=1e-5),
        spec,
        f"logits differ by {float((made - logits).abs().max()):.3g} from what head_weight, "
        "head_scale and head_softcap say; a fused loss would train another model",
    )


def _check_causality(spec: ModelSpec, model: LanguageModel, batch: Batch) -> None:
    """Change each token and look at the hidden states before it."""
    reference = _hidden(model, batch)
    expect(
        not torch.allclose(reference[:, -1], _hidden(model, _changed(batch, 0, model))[:, -1])
        or _depends_on_own_token_alone(model, batch),
        spec,
        "hidden states depend neither on earlier tokens nor on their own",
    )
    for position in range(1, batch.input_ids.shape[1]):
        changed = _hidden(model, _changed(batch, position, model))
        before = (changed - reference)[:, :position].abs().max()
        expect(
            float(before) <= 1e-5,
            spec,
            f"changing token {position} changes hidden states before it by {float(before):.3g}; "
            "mask the attention causally, or the model reads the labels it is to predict",
        )


def _depends_on_own_token_alone(model: LanguageModel, batch: Batch) -> bool:
    last = batch.input_ids.shape[1] - 1
    changed = _hidden(model, _changed(batch, last, model))
    return not torch.allclose(_hidden(model, batch)[:, last], changed[:, last])


def _changed(batch: Batch, position: int, model: LanguageModel) -> Batch:
    tokens = batch.input_ids.clone()
    tokens[:, position] = (tokens[:, position] + 1) % model.vocab_size
    return Batch(input_ids=tokens, labels=batch.labels)


def _hidden(model: LanguageModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model(batch)
    return hidden


def _check_initial_values(spec: ModelSpec, model: LanguageModel, batch: Batch) -> None:
    other = spec.build(device="cpu")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(torch.nan)
    torch.rand(7)  # moves the global generator, which must not matter
    other.init_weights(_SEED)
    _expect_same(spec, model, other, "a second time, over other values,")
    meta = spec.build(device="meta")
    left = [name for name, p in meta.named_parameters() if p.device.type != "meta"]
    expect(not left, spec, f"built on 'meta', {', '.join(left)} is elsewhere; pass device on to it")
    meta.to_empty(device="cpu")
    meta.init_weights(_SEED)
    _expect_same(spec, model, meta, "after the meta device")
    expect(
        same_bits(_hidden(model, batch), _hidden(meta.eval(), batch)),
        spec,
        "built on 'meta' and then filled, it computes something else; let init_weights fill "
        "buffers too, or make them in forward",
    )
    another = spec.build(device="cpu")
    another.init_weights(_SEED + 1)
    pairs = zip(model.parameters(), another.parameters(), strict=True)
    expect(
        any(not torch.equal(a, b) for a, b in pairs),
        spec,
        "init_weights gives the same values for two seeds; draw them from its argument",
    )


def _expect_same(spec: ModelSpec, one: nn.Module, other: nn.Module, when: str) -> None:
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    differing = [name for (name, a), b in pairs if not torch.equal(a, b)]
    expect(
        not differing,
        spec,
        f"init_weights, called {when} gives other values for {', '.join(differing)}; draw each "
        "parameter whole from a CPU generator seeded by the seed and the parameter's name",
    )


def _check_gradients(spec: ModelSpec, model: LanguageModel, batch: Batch) -> None:
    model.train()
    hidden: Tensor = model(batch)
    logits = model.logits(hidden).flatten(0, 1).float()
    loss = nn.functional.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE_INDEX)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    expect(
        not without,
        spec,
        f"{', '.join(without)} gets no gradient, which ranks would wait for; use it in forward, "
        "leave it out, or give it requires_grad=False",
    )
    model.zero_grad()
