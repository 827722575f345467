"""Datasets of examples → MDS shards: prompt and response, messages, or turns of token ids."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.data.card import DataCard, SourceFile
from foundry_sdk.data.contract import Preprocess, PreprocessorSpec, TokenizerSpec
from foundry_sdk.data.convert.destination import destination
from foundry_sdk.data.convert.folder import finished, identity, workspace
from foundry_sdk.data.convert.hub import pinned_revision
from foundry_sdk.data.convert.run import ConversionProgress, Job, Report
from foundry_sdk.data.finetuning.encode import ExampleEncoder, Turn, example_of
from foundry_sdk.data.finetuning.examples import Conversation, PromptExample, checked
from foundry_sdk.data.finetuning.options import Targets
from foundry_sdk.data.finetuning.remote import ENDINGS, is_uri
from foundry_sdk.data.finetuning.rows import LOCAL_FORMATS, Rows, TableSource
from foundry_sdk.data.finetuning.targets import stitch, stitch_apart
from foundry_sdk.data.finetuning.tokenized import code_of
from foundry_sdk.data.mds import SHARD_BYTES, Shard, ShardLayout, encode_row
from foundry_sdk.data.preprocess import import_function
from foundry_sdk.data.tokenizer import fingerprint, load_tokenizer
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS: Final = {"prompt": "str", "response": "str"}
CHATS: Final = {"messages": "json"}
TURNS: Final = {"turns": "json"}
_ROWS: Final = 1000


@attrs.frozen(kw_only=True)
class Tokenization:
    """How examples become turns, and which have nothing to learn.

    Attributes:
        name: of the tokenizer, as it was given.
        tokenizer: loaded.
        max_seq_len, targets, encoder_decoder: of the run that is to come; examples without a
            target under them are left out.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase" = attrs.field(repr=False)
    max_seq_len: int
    targets: Targets
    encoder_decoder: bool

    def learns(self, turns: Sequence[Turn]) -> bool:
        """Tell whether an example has anything to learn."""
        if not turns or any(not len(part) for turn in turns for part in turn):
            return False
        if self.encoder_decoder:
            eos = int(self.tokenizer.eos_token_id)
            return bool(len(stitch_apart(turns, eos=eos, length=self.max_seq_len)[1]))
        _, learned = stitch(turns, self.targets, eos=None, length=self.max_seq_len)
        return bool((learned != IGNORE_INDEX).any())

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values."""
        return {
            "tokenizer_sha256": fingerprint(self.tokenizer),
            "chat_template": self.tokenizer.chat_template,
            "max_seq_len": self.max_seq_len,
            "targets": attrs.asdict(self.targets),
            "encoder_decoder": self.encoder_decoder,
        }


@attrs.define
class _Counts:
    documents: int = 0
    samples: int = 0
    dropped: int = 0
    tokens: int = 0
    chat_template: str | None = None


@attrs.frozen(kw_only=True)
class ExampleConversion:
    """One split on its way into shards.

    Attributes:
        source: where rows are from.
        revision: commit of a dataset of the hub.
        split: name of the folder.
        preprocess: makes an example of a row; None = rows are examples.
        tokenization: None = write text.
        compression, size_limit: of shards.
    """

    source: TableSource
    revision: str | None
    split: str
    preprocess: Preprocess | None
    tokenization: Tokenization | None
    compression: str | None
    size_limit: int

    def made(self, card: DataCard) -> bool:
        """Tell whether a card is that of this very conversion; reads the input."""
        return card.conversion == identity(self._arguments(self.source.open()))

    def run(self, final: Path, job: Job) -> DataCard:
        """Write the folder ``final`` and return its card.

        Raises:
            DataError: bad input, or the folder is not free.
        """
        done = finished(final, self.made, resume=job.resume, overwrite=job.overwrite)
        if done is not None:
            return done
        rows = self.source.open()
        arguments = self._arguments(rows)
        counts = _Counts()
        with workspace(final, arguments, resume=job.resume, overwrite=job.overwrite) as space:
            for shard in self._shards(rows, counts, job):
                space.write(shard)
            if not counts.samples:
                raise DataError(
                    f"{final}: nothing to write: of {counts.documents} examples none has anything "
                    "to learn"
                )
            card = self._card(arguments, counts, space.state.shards)
            space.publish(card)
        return card

    def _arguments(self, rows: Rows) -> dict[str, Any]:
        return {
            "rows": rows.identity(),
            "split": self.split,
            "preprocessor": None if self.preprocess is None else code_of(self.preprocess),
            "tokenization": None if self.tokenization is None else self.tokenization.identity(),
            "compression": self.compression,
            "size_limit": self.size_limit,
        }

    def _shards(self, rows: Rows, counts: _Counts, job: Job) -> Iterator[Shard]:
        layout: ShardLayout | None = None
        waiting: list[bytes] = []
        size = number = 0
        for row in self._examples(rows, counts, job):
            if layout is None:
                columns = {name: {**PROMPTS, **CHATS, **TURNS}[name] for name in row}
                layout = ShardLayout(
                    columns=columns, compression=self.compression, size_limit=self.size_limit
                )
            if set(row) != set(layout.columns):
                raise DataError(
                    f"split {self.split!r}: some examples have {sorted(layout.columns)}, others "
                    f"{sorted(row)}; shards hold one kind"
                )
            sample = encode_row(layout.columns, row)
            if waiting and size + len(sample) + 4 > self.size_limit - layout.empty_bytes:
                yield layout.shard(number, waiting)
                number, waiting, size = number + 1, [], 0
            waiting.append(sample)
            size += len(sample) + 4
        if layout is not None:
            yield layout.shard(number, waiting)

    def _examples(self, rows: Rows, counts: _Counts, job: Job) -> Iterator[Mapping[str, Any]]:
        """Yield rows as they are written; count, and tell how far it is."""
        began = told = time.monotonic()
        encoder = None if self.tokenization is None else ExampleEncoder(self.tokenization.tokenizer)
        source = rows.read(0)
        while chunk := list(islice(source, _ROWS)):
            places = [rows.place(counts.documents + n) for n in range(len(chunk))]
            counts.documents += len(chunk)
            for row in self._written(chunk, places, counts, encoder):
                counts.samples += 1
                yield row
            now = time.monotonic()
            if job.report is not None and now - told >= 1:
                told = now
                share, speed = counts.documents / len(rows), counts.documents / (now - began)
                job.report(
                    ConversionProgress(
                        split=self.split,
                        fraction=share,
                        samples=counts.samples,
                        documents=counts.documents,
                        tokens=None,
                        tokens_per_second=speed,
                        seconds_left=(len(rows) - counts.documents) / speed,
                    )
                )

    def _written(
        self,
        chunk: Sequence[Mapping[str, Any]],
        places: Sequence[str],
        counts: _Counts,
        encoder: ExampleEncoder | None,
    ) -> Iterator[Mapping[str, Any]]:
        if self.tokenization is None or encoder is None:
            for row, where in zip(chunk, places, strict=True):
                yield as_row(checked(example_of(row, self.preprocess, where), where))
            return
        encoded = encoder.encode(chunk, self.preprocess, places)
        counts.chat_template = encoder.chat_template
        for turns in encoded:
            if not self.tokenization.learns(turns):
                counts.dropped += 1
                continue
            counts.tokens += sum(len(part) for turn in turns for part in turn)
            yield {
                "turns": [
                    {"input_ids": context.tolist(), "labels": target.tolist()}
                    for context, target in turns
                ]
            }

    def _card(
        self,
        arguments: Mapping[str, Any],
        counts: _Counts,
        shards: Sequence[Mapping[str, Any]],
    ) -> DataCard:
        stored = [entry["zip_data"] or entry["raw_data"] for entry in shards]
        digest = hashlib.sha256(repr(sorted(arguments["rows"].items())).encode()).hexdigest()
        tokens = self.tokenization
        return DataCard(
            kind="finetuning",
            split=self.split,
            samples=counts.samples,
            documents=counts.documents,
            skipped_documents=counts.dropped,
            tokens=None if tokens is None else counts.tokens,
            tokenizer=None if tokens is None else tokens.name,
            tokenizer_sha256=None if tokens is None else fingerprint(tokens.tokenizer),
            vocab_size=None if tokens is None else len(tokens.tokenizer),
            compression=self.compression,
            sources=(
                SourceFile(
                    path=f"{self.source.name}:{self.source.split}",
                    sha256=digest,
                    revision=self.revision,
                ),
            ),
            shards={item["basename"]: item["hashes"]["sha256"] for item in stored},
            options={
                "preprocessor": arguments["preprocessor"],
                "columns": dict(zip(*_columns_of(shards), strict=True)),
                "chat_template": counts.chat_template,
            },
            conversion=identity(arguments),
        )


def as_row(example: PromptExample | Conversation) -> dict[str, Any]:
    """Return an example as columns ``prompt`` and ``response``, or ``messages``."""
    if isinstance(example, PromptExample):
        return {"prompt": example.prompt, "response": example.response}
    return {"messages": [dict(message) for message in example.messages]}


def convert_finetuning(
    *,
    dataset: str,
    out_root: str | Path,
    splits: Sequence[str] | None = None,
    local: str | Path | None = None,
    data_subset: str | None = None,
    data_files: Sequence[str] = (),
    preprocessor: str | PreprocessorSpec | Preprocess | None = None,
    safe_load: bool = False,
    tokenizer: str | None = None,
    tokenizer_kwargs: Mapping[str, Any] | None = None,
    max_seq_len: int = 2048,
    target_prompts: str = "none",
    target_responses: str = "last",
    encoder_decoder: bool = False,
    compression: str | None = None,
    size_limit: int = SHARD_BYTES,
    resume: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
) -> dict[str, DataCard]:
    """Convert examples to MDS shards, a folder per split, for ``train_loader: finetuning``.

    Args:
        dataset: name on the hub, a folder, a file or its URI (.jsonl, .json, .csv, .parquet), the
            URI of what has a file per split, or json, csv or parquet with ``data_files``.
        out_root: local folder, or ``s3://bucket/prefix``.
        splits: of the dataset, and names of the folders. None = train of a file, else train and
            validation.
        local: folder where a copy of what goes to a bucket stays.
        data_subset: configuration of the dataset.
        data_files: one per split.
        preprocessor: makes an example of a row: a component, a function, or
            ``import.path:function``; None = rows are examples.
        safe_load: read files of harmless formats only.
        tokenizer: write ids instead of text; folder or name on the hub.
        tokenizer_kwargs: passed on to ``AutoTokenizer.from_pretrained``.
        max_seq_len: of the run that is to come; with a tokenizer, examples that have nothing to
            learn under this and the next three are left out.
        target_prompts: see ``max_seq_len``.
        target_responses: see ``max_seq_len``.
        encoder_decoder: see ``max_seq_len``.
        compression: "zstd", "zstd:7", "gz", "bz2", "br" or "snappy", each with or without level.
        size_limit: bytes of a shard before compression.
        resume: take what is finished as it is, and begin an unfinished split anew.
        overwrite: replace what is there, once the new data is whole.
        report: called about once a second with the progress.

    Returns:
        The card of each split.

    Raises:
        DataError: bad input or options, or a folder is not free.
        RunError: a file could not be written or uploaded.
    """
    is_file = dataset.endswith(ENDINGS)
    if splits is None:
        splits = ("train",) if is_file else ("train", "validation")
    if is_file and len(splits) > 1:
        raise DataError(f"splits: {dataset} is a file, which is one split; give one name")
    if data_files and len(data_files) != len(splits):
        raise DataError(
            f"data_files: {len(data_files)} for {len(splits)} splits ({', '.join(splits)}); give "
            "one file per split"
        )
    if dataset in LOCAL_FORMATS and not data_files:
        raise DataError(f"data_files: required with {dataset!r}: one file per split")
    job = Job(resume=resume, overwrite=overwrite, report=report)
    targets = {split: destination(out_root, split, keep=local) for split in splits}
    for target in targets.values():
        target.require_free(resume=resume, overwrite=overwrite)
    is_hub = dataset not in LOCAL_FORMATS and not is_file and not is_uri(dataset)
    revision = pinned_revision(dataset) if is_hub else None
    tokenization = None
    if tokenizer is not None:
        tokenization = Tokenization(
            name=tokenizer,
            tokenizer=load_tokenizer(TokenizerSpec(name=tokenizer, kwargs=tokenizer_kwargs or {})),
            max_seq_len=max_seq_len,
            targets=Targets(prompts=target_prompts, responses=target_responses),
            encoder_decoder=encoder_decoder,
        )
    cards = {}
    for number, (split, target) in enumerate(targets.items()):
        options: dict[str, Any] = {"name": data_subset, "revision": revision}
        if data_files:
            options["data_files"] = {split: data_files[number]}
        given = {key: value for key, value in options.items() if value is not None}
        conversion = ExampleConversion(
            source=TableSource(name=dataset, split=split, options=given, safe=safe_load),
            revision=revision,
            split=split,
            preprocess=_function(preprocessor),
            tokenization=tokenization,
            compression=compression,
            size_limit=size_limit,
        )
        cards[split] = target.make(conversion, job)
    return cards


def _function(given: str | PreprocessorSpec | Preprocess | None) -> Preprocess | None:
    if isinstance(given, str):
        return import_function(given)
    if isinstance(given, PreprocessorSpec):
        return given.build()
    function: Callable[[Mapping[str, Any]], Any] | None = given
    return function


def _columns_of(shards: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    return shards[0]["column_names"], shards[0]["column_encodings"]
