"""``device_train_microbatch_size: auto`` on one GPU: the fastest size that fits, by trying."""

import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.checkpoint.rng import capture_rng, restore_rng
from foundry_sdk.training.feed import Drawn, Feed
from foundry_sdk.training.step import forward_backward

if TYPE_CHECKING:
    from foundry_sdk.training.assemble import Assembly

SECONDS: Final = 60.0
"""After so many seconds no further size is tried."""
_START_TOKENS: Final = 8192
"""The first size has about so many tokens per forward, with which a GPU is nearly busy."""
_GAIN: Final = 1.01
"""A larger size must be faster by this factor: it takes more memory."""
_FILE: Final = "microbatch.json"
_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Finding:
    """What was found.

    Attributes:
        size: sequences per forward.
        rates: tokens per second of each size that was tried; None = it does not fit.
    """

    size: int
    rates: dict[int, float | None]

    def text(self) -> str:
        """Return it as a line for people."""
        tried = [
            f"{size}: {'does not fit' if rate is None else f'{rate:,.0f} tokens/s'}"
            for size, rate in sorted(self.rates.items())
        ]
        return f"{self.size}, the fastest that fits ({', '.join(tried)})"


def candidates(device_batch: int, sequence_length: int) -> list[int]:
    """Return sizes to try, ascending, each at least 1.5 times the one before.

    All divide the device batch, so that the forwards of a step are alike: another shape would be
    compiled anew.
    """
    divisors = [size for size in range(1, device_batch + 1) if device_batch % size == 0]
    first = max((d for d in divisors if d * sequence_length <= _START_TOKENS), default=1)
    chosen = [first]
    for size in divisors:
        if size >= 1.5 * chosen[-1]:
            chosen.append(size)
    return chosen


def fastest(
    sizes: Sequence[int],
    rate: Callable[[int], float | None],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Finding:
    """Try ascending sizes until one does not fit, gains nothing, or time is up.

    Where the first does not fit, it is halved until one does.

    Args:
        sizes: ascending.
        rate: returns a size's tokens per second, or None where memory does not suffice.
        seconds: budget.
        clock: in seconds.
    """
    begin, rates = clock(), {sizes[0]: rate(sizes[0])}
    size, best = sizes[0], rates[sizes[0]]
    while best is None and size > 1:
        size //= 2
        best = rates[size] = rate(size)
    if rates[sizes[0]] is None:
        return Finding(size=size, rates=rates)
    for larger in sizes[1:]:
        if clock() - begin > seconds:
            break
        found = rates[larger] = rate(larger)
        if found is None or (best is not None and found < _GAIN * best):
            break
        size, best = larger, found
    return Finding(size=size, rates=rates)


def choose_microbatch(assembly: "Assembly", feed: Feed, cache: Path) -> None:
    """Set the microbatch to the fastest that fits, where the spec leaves it open.

    Runs forwards and backwards on the first batch, at full length. Weights, optimizer, random
    state and the position in the data are afterwards what they were.

    Args:
        assembly: of one process with a GPU, before its first step.
        feed: gives the batch, and gets it back.
        cache: folder that remembers the finding for the next start of this run.
    """
    key, path = _key(assembly), cache / _FILE
    finding = _remembered(path, key)
    if finding is None:
        _log.info("trying microbatch sizes for at most %.0f s", SECONDS)
        finding = _try(assembly, feed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": key, "size": finding.size, "rates": finding.rates}))
    assembly.microbatching.size = finding.size
    if assembly.spec.device_eval_batch_size is None:
        assembly.evaluators = tuple(
            attrs.evolve(evaluator, microbatch=min(evaluator.microbatch, finding.size))
            for evaluator in assembly.evaluators
        )
    assembly.choices["device_train_microbatch_size"] = finding.text()


def _try(assembly: "Assembly", feed: Feed) -> Finding:
    drawn = feed.take()
    random = capture_rng()
    reserved = _room_for_state(assembly)
    length = assembly.spec.max_seq_len
    compiled: list[int] = []

    def rate(size: int) -> float | None:
        if compiled and compiled[-1] != size:
            torch._dynamo.reset()  # each size as static as it will be in training
        compiled.append(size)
        rows = min(2 * size, assembly.plan.device_batch)
        trial = attrs.evolve(drawn, batch=full_length(_first(drawn.batch, rows), length))
        try:
            return _rate(assembly, trial, size, tokens=rows * length)
        except torch.OutOfMemoryError:
            return None

    try:
        finding = fastest(candidates(assembly.plan.device_batch, length), rate)
    finally:
        del reserved
        _clear(assembly)
        restore_rng(random)
        feed.put_back(drawn)
    if compiled[-1] != finding.size:
        torch._dynamo.reset()
    return finding


def _rate(assembly: "Assembly", drawn: Drawn, size: int, *, tokens: int) -> float:
    for repetition in range(2):  # the first compiles
        _clear(assembly)
        _wait(assembly)
        begin = time.perf_counter()
        forward_backward(assembly, drawn, size)
        _wait(assembly)
        seconds = time.perf_counter() - begin
        _log.debug("microbatch %d, run %d: %.3f s", size, repetition, seconds)
    return tokens / seconds


def _wait(assembly: "Assembly") -> None:
    if assembly.runtime.device.type == "cuda":
        torch.cuda.synchronize()


def _clear(assembly: "Assembly") -> None:
    for parameter in assembly.parameters:
        parameter.grad = None
    gc.collect()
    if assembly.runtime.device.type == "cuda":
        torch.cuda.empty_cache()


def _room_for_state(assembly: "Assembly") -> Tensor | None:
    """Take the memory that the optimizer's state will take at the first step."""
    if assembly.optimizer.state:
        return None
    floats = assembly.spec.optimizer.state_floats()
    count = sum(p.numel() for p in assembly.parameters)
    size = 4 * count * (2 if floats is None else floats)
    return torch.empty(size, dtype=torch.uint8, device=assembly.runtime.device)


def _first(batch: Batch, rows: int) -> Batch:
    return next(batch.split(rows))


def full_length(batch: Batch, length: int) -> Batch:
    """Return ``batch`` with every row as long as a row can be: its own tokens again and again."""
    tensors = {
        field.name: getattr(batch, field.name)
        for field in attrs.fields(Batch)
        if field.name != "sample_ids" and getattr(batch, field.name) is not None
    }
    longer = {}
    for name, tensor in tensors.items():
        times = -(-length // tensor.shape[1])
        longer[name] = tensor.repeat(1, times)[:, :length] if times > 1 else tensor
    if batch.attention_mask is not None:
        longer["attention_mask"] = torch.ones_like(longer["attention_mask"])
    return attrs.evolve(batch, **longer)


def _key(assembly: "Assembly") -> dict[str, Any]:
    """Return what the finding depends on, as JSON values."""
    from foundry_sdk.specs.structure import unstructure

    spec = unstructure(assembly.spec)
    parts = (
        "model",
        "loss",
        "max_seq_len",
        "global_train_batch_size",
        "precision",
        "weights",
        "fp8_config",
        "fsdp_config",
        "compile_config",
        "deterministic",
    )
    settings = {name: spec.get(name) for name in parts}
    versions = {"torch": torch.__version__, "device": assembly.runtime.device_name()}
    found: dict[str, Any] = json.loads(json.dumps(settings | versions, default=str))
    return found


def _remembered(path: Path, key: dict[str, Any]) -> Finding | None:
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # none yet, or one whose writing was cut off
    if not isinstance(stored, dict) or stored.get("key") != key:
        return None
    rates = {int(size): rate for size, rate in stored["rates"].items()}
    return Finding(size=int(stored["size"]), rates=rates)
