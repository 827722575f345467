"""What a folder of MDS shards holds: columns, samples as a loader gives them, statistics."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from foundry_sdk.data.card import DataCard
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.index import MDSIndex
from foundry_sdk.data.integrity import verify_folder
from foundry_sdk.data.text import TextDatasetSpec, make_batch_function
from foundry_sdk.data.tokenizer import fingerprint
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.batch import Batch
    from foundry_sdk.data.streamed import VerifiedDataset

DEFAULT_LENGTH: Final = 2048
_FIELDS: Final = ("input_ids", "labels", "attention_mask", "sequence_ids", "sample_ids")


@attrs.frozen(kw_only=True)
class Part:
    """One tensor of a batch, or one column of a sample."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@attrs.frozen(kw_only=True)
class Shown:
    """One batch: its parts, and what its samples say.

    Attributes:
        parts: tensors as the model gets them; without a tokenizer the columns as stored.
        samples: each sample's number and its text: decoded ids, or the column itself.
    """

    parts: Sequence[Part]
    samples: Sequence[tuple[int, str]]


@attrs.frozen(kw_only=True)
class Statistics:
    """Numbers over the first samples.

    Attributes:
        samples: how many were read.
        tokens: ids in them; for text only with a tokenizer.
        eos_tokens: end-of-sequence ids among them, so documents that end; None = id unknown.
        characters: of all texts; None for tokens.
        histogram: (from, below, samples) of lengths, in powers of two: characters of texts,
            ids of token rows.
        largest_id: the highest id; every id must be below the tokenizer's length.
    """

    samples: int
    tokens: int | None
    eos_tokens: int | None
    characters: int | None
    histogram: Sequence[tuple[int, int, int]]
    largest_id: int | None

    @property
    def eos_share(self) -> float | None:
        """Share of end-of-sequence ids among all; its inverse is the mean length of documents."""
        if self.eos_tokens is None or not self.tokens:
            return None
        return self.eos_tokens / self.tokens


@attrs.frozen(kw_only=True)
class Inspection:
    """What was found.

    Attributes:
        folder: where the shards lie on this machine (until the end, if it is temporary).
        index, card: what the folder says of itself.
        notices: what does not fit, though it can be read.
        verified: files whose digest was compared; None = not asked for.
        batches: the first ones.
        statistics: over the first samples.
    """

    folder: Path
    index: MDSIndex
    card: DataCard | None
    notices: Sequence[str]
    verified: int | None
    batches: Sequence[Shown]
    statistics: Statistics

    @property
    def stored_bytes(self) -> int:
        """Size of all shards as they are stored."""
        return sum(shard.stored.bytes for shard in self.index.shards)


def inspect_data(
    *,
    local: str | None = None,
    remote: str | None = None,
    split: str | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_seq_len: int | None = None,
    batches: int = 5,
    batch_size: int = 2,
    samples: int = 1000,
    verify: bool = False,
) -> Inspection:
    """Read a folder as a loader does and return what it holds.

    Args:
        local: folder of the shards; with ``remote``: where they are fetched to.
        remote: folder or URL that they are fetched from; without ``local`` into a temporary one.
        split: folder below both.
        tokenizer: decodes ids, and makes ids of text.
        max_seq_len: ids a row is cut to; None = as the data is.
        batches: batches that are shown.
        batch_size: samples of each.
        samples: samples that the statistics are taken of; 0 = all.
        verify: compare every shard with its digest, fetching all of them.

    Raises:
        DataError: the data is missing or broken; with ``verify`` one line per damaged file.
    """
    with ExitStack() as stack:
        if remote is not None and local is None:
            local = stack.enter_context(tempfile.TemporaryDirectory(prefix="foundry-inspect-"))
        spec = TextDatasetSpec(remote=remote, local=local, split=split, keep_zip=True)
        context = LoaderContext(
            tokenizer=tokenizer,  # type: ignore[arg-type]  # opening needs none
            rank=0,
            world_size=1,
            device_batch=batch_size,
            max_seq_len=max_seq_len or DEFAULT_LENGTH,
            seed=0,
            training=False,
        )
        dataset = spec.open(context)
        stack.callback(dataset.close)
        (stream,) = dataset.streams
        verified = _verify(dataset) if verify else None
        length = max_seq_len or _length(dataset, stream.card)
        context = attrs.evolve(context, max_seq_len=length)
        return Inspection(
            folder=stream.folder,
            index=stream.index,
            card=stream.card,
            notices=_notices(stream.card, tokenizer),
            verified=verified,
            batches=list(_show(dataset, spec, context, batches)),
            statistics=_count(dataset, stream.card, tokenizer, samples or dataset.num_samples),
        )


def _verify(dataset: "VerifiedDataset") -> int:
    (stream,) = dataset.streams
    problems = []
    if stream.remote is not None:
        for shard_id in range(dataset.num_shards):
            try:
                dataset.prepare_shard(shard_id)
            except DataError as error:
                problems.append(str(error))
    if not problems:
        found, compared = verify_folder(stream.folder)
        if not found:
            return compared
        problems = [str(problem) for problem in found]
    raise DataError("\n".join(problems))


def _length(dataset: "VerifiedDataset", card: DataCard | None) -> int:
    if card is not None and card.sequence_length:
        return card.sequence_length
    first = dataset[0].get("tokens")
    return len(first) if first is not None and len(first) else DEFAULT_LENGTH


def _notices(card: DataCard | None, tokenizer: "PreTrainedTokenizerBase | None") -> list[str]:
    if card is None:
        return ["no card.json: tokenizer, source and number of documents are not known"]
    if tokenizer is not None and card.tokenizer_sha256 not in (None, fingerprint(tokenizer)):
        return [
            f"made with another tokenizer, {card.tokenizer!r}: ids are decoded wrongly, and a "
            "run with this one is refused"
        ]
    return []


def _show(
    dataset: "VerifiedDataset", spec: TextDatasetSpec, context: LoaderContext, batches: int
) -> Iterator[Shown]:
    import torch

    columns = dataset.streams[0].index.columns
    is_batch = context.tokenizer is not None and ("tokens" in columns or "text" in columns)
    make = make_batch_function(spec, dataset.streams, context) if is_batch else None
    size = context.device_batch
    for start in range(0, min(batches * size, dataset.num_samples), size):
        numbers = range(start, min(start + size, dataset.num_samples))
        rows: list[dict[str, Any] | None] = [dataset[number] for number in numbers]
        if make is None:
            yield _as_stored(numbers, [row for row in rows if row is not None])
        else:
            yield _as_batch(make(rows, torch.tensor(numbers)), context)


def _as_batch(batch: "Batch", context: LoaderContext) -> Shown:
    parts = []
    for name in _FIELDS:
        tensor = getattr(batch, name)
        if tensor is not None:
            kind = str(tensor.dtype).removeprefix("torch.")
            parts.append(Part(name=name, shape=tuple(tensor.shape), dtype=kind))
    texts = []
    for row, number in enumerate(batch.sample_ids if batch.sample_ids is not None else []):
        ids = batch.input_ids[row]
        if batch.attention_mask is not None:
            ids = ids[batch.attention_mask[row]]
        texts.append((int(number), str(context.tokenizer.decode(ids.tolist()))))
    return Shown(parts=parts, samples=texts)


def _as_stored(numbers: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Shown:
    parts = [
        Part(
            name=name,
            shape=_shape(value),
            dtype=str(getattr(value, "dtype", type(value).__name__)),
        )
        for name, value in rows[0].items()
    ]
    texts = [
        (number, "\n".join(f"{name}: {_plain(value)}" for name, value in row.items()))
        for number, row in zip(numbers, rows, strict=True)
    ]
    return Shown(parts=parts, samples=texts)


def _shape(value: Any) -> tuple[int, ...]:  # noqa: ANN401
    if hasattr(value, "shape"):
        return tuple(value.shape)
    return (len(value),) if hasattr(value, "__len__") else ()


def _plain(value: object) -> str:
    tolist = getattr(value, "tolist", None)
    return str(tolist() if tolist is not None else value)


def _count(
    dataset: "VerifiedDataset",
    card: DataCard | None,
    tokenizer: "PreTrainedTokenizerBase | None",
    samples: int,
) -> Statistics:
    import numpy as np

    eos = _eos_id(card, tokenizer)
    lengths: list[int] = []
    tokens, ends, characters, largest = 0, 0, 0, -1
    columns = dataset.streams[0].index.columns
    is_text, is_tokens = "text" in columns and "tokens" not in columns, "tokens" in columns
    samples = min(samples, dataset.num_samples) if is_text or is_tokens else 0
    for number in range(samples):
        sample = dataset[number]
        ids = sample.get("tokens")
        if is_text:
            characters += len(sample["text"])
            lengths.append(len(sample["text"]))
            if tokenizer is not None:
                ids = tokenizer(sample["text"], truncation=False, padding=False)["input_ids"]
        if ids is None or isinstance(ids, bytes):
            continue
        row = np.asarray(ids, np.int64)
        tokens += row.size
        ends += int((row == eos).sum())
        largest = max(largest, int(row.max(initial=-1)))
        if is_tokens:
            lengths.append(len(ids))
    return Statistics(
        samples=samples,
        tokens=tokens if largest >= 0 else None,
        eos_tokens=ends if eos is not None and largest >= 0 else None,
        characters=characters if is_text else None,
        histogram=_histogram(lengths),
        largest_id=largest if largest >= 0 else None,
    )


def _eos_id(card: DataCard | None, tokenizer: "PreTrainedTokenizerBase | None") -> int | None:
    if card is not None and len(card.eos_ids) == 1:
        return card.eos_ids[0]
    return None if tokenizer is None else int(tokenizer.eos_token_id)


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Count lengths by powers of two: [0, 1), [1, 2), [2, 4), ..."""
    counts: dict[int, int] = {}
    for length in lengths:
        counts[length.bit_length()] = counts.get(length.bit_length(), 0) + 1
    if not counts:
        return []
    return [
        (1 << bits - 1 if bits else 0, 1 << bits, counts.get(bits, 0))
        for bits in range(min(counts), max(counts) + 1)
    ]
