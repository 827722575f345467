"""Checks of loaders: whole batches, always the same ones, and a position to go on from."""

import json
from collections.abc import Iterator
from itertools import islice

import attrs
import torch

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.data.contract import BatchSource, DataSpec, LoaderContext
from foundry_sdk.testing.failure import expect

_MOST = 8
_TAKEN = 2


def check_loader(spec: DataSpec, context: LoaderContext) -> None:
    """Check the first batches of an epoch; there must be at least three.

    Raises:
        ConformanceError: a batch is not what a run takes, another build gives other batches, or a
            source does not go on where its saved position is.
    """
    source = spec.build(context)
    try:
        stream = iter(source)
        batches = list(islice(stream, _TAKEN))
        position = source.state_dict()
        expect(
            json.loads(json.dumps(position)) == position,
            spec,
            f"state_dict must be JSON values that come back equal, got {position!r}",
        )
        rest = list(islice(stream, _MOST - _TAKEN))
        _end(stream)
    finally:
        source.close()
    expect(rest, spec, f"only {len(batches)} batches of an epoch came; check it with three or more")
    for batch in (*batches, *rest):
        _check_batch(spec, batch, context)
    anew = _some(spec.build(context), _MOST)
    expect(
        _equal(batches + rest, anew),
        spec,
        "built again, it gives other batches; take the order from context.seed alone",
    )
    resumed = spec.build(context)
    resumed.load_state_dict(position)
    expect(
        _equal(rest, _some(resumed, len(rest))),
        spec,
        f"after load_state_dict it does not go on with batch {_TAKEN + 1}; count the batches that "
        "were handed out, not those that workers made",
    )


def _some(source: BatchSource, count: int) -> list[Batch]:
    try:
        stream = iter(source)
        batches = list(islice(stream, count))
        _end(stream)
        return batches
    finally:
        source.close()


def _end(stream: Iterator[Batch]) -> None:
    """End a generator here and not when it is collected."""
    close = getattr(stream, "close", None)
    if close is not None:
        close()


def _check_batch(spec: DataSpec, batch: Batch, context: LoaderContext) -> None:
    expect(
        len(batch) == context.device_batch,
        spec,
        f"a batch has {len(batch)} sequences; each has context.device_batch = "
        f"{context.device_batch}, the last one too",
    )
    for name in ("input_ids", "labels"):
        tensor = getattr(batch, name)
        expect(
            tensor.dtype == torch.int64 and tensor.dim() == 2,
            spec,
            f"{name} must be int64 (sequences, length), got {tensor.dtype} of {tensor.dim()} "
            "dimensions",
        )
    expect(
        batch.input_ids.shape[1] <= context.max_seq_len,
        spec,
        f"sequences of {batch.input_ids.shape[1]} tokens, more than context.max_seq_len = "
        f"{context.max_seq_len}",
    )
    vocabulary = len(context.tokenizer)
    known = (batch.input_ids >= 0) & (batch.input_ids < vocabulary)
    expect(known.all(), spec, f"input_ids must lie in the tokenizer's {vocabulary} tokens")
    labelled = batch.labels != IGNORE_INDEX
    inside = (batch.labels >= 0) & (batch.labels < vocabulary)
    expect(
        (inside | ~labelled).all(),
        spec,
        f"labels must be token ids or IGNORE_INDEX ({IGNORE_INDEX})",
    )
    if batch.decoder_input_ids is None:
        expect(
            batch.labels.shape == batch.input_ids.shape,
            spec,
            f"labels have the shape {tuple(batch.labels.shape)}, input_ids "
            f"{tuple(batch.input_ids.shape)}",
        )
        known_next = labelled[:, :-1]
        expect(
            (batch.labels[:, :-1] == batch.input_ids[:, 1:])[known_next].all(),
            spec,
            "labels[:, t] must be what follows input_ids[:, t], so input_ids[:, t + 1]; shift "
            "them by one",
        )


def _equal(left: list[Batch], right: list[Batch]) -> bool:
    if len(left) != len(right):
        return False
    for one, other in zip(left, right, strict=True):
        for field in attrs.fields(Batch):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
                return False
    return True
