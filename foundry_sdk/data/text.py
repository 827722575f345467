"""``name: text``: MDS shards of tokens, or of text that is tokenized while loading, → batches."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.data.contract import BatchSource, DataSpec, LoaderContext
from foundry_sdk.data.streams import ShardsSpec, only
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.batch import Batch
    from foundry_sdk.data.collate import LanguageModelingCollator
    from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec
    from foundry_sdk.data.verified_stream import VerifiedStream

_log = logging.getLogger(__name__)

IntegerType = Literal["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_TOKENS: Final = re.compile(r"(?:ndarray(?::(?P<type>u?int(?:8|16|32|64))(?::[\d,]+)?)?|bytes)")


@attrs.frozen(kw_only=True)
class TextDatasetSpec(ShardsSpec):
    """``dataset:`` of a text loader.

    Attributes:
        max_seq_len: must be the run's, where given.
        token_encoding_type: numbers in a column ``tokens`` of raw bytes; a column of arrays
            says it itself.
        eos_token_id: number documents by this token; each position then attends only to its
            own document, with a model that supports it. Must be the tokenizer's.
        bos_token_id: the same by the token that begins a document; one of the two.
        override_eos_token_id_mismatch_error: another ``eos_token_id`` than the tokenizer's is
            meant so.
        override_bos_token_id_mismatch_error: another ``bos_token_id`` is meant so.
        mlm_probability, seq_parallel_replication: names of the reference that may only have
            their default.
    """

    max_seq_len: int | None = attrs.field(
        default=None, validator=validators.optional(validators.gt(0))
    )
    token_encoding_type: IntegerType = "int64"  # noqa: S105  # a type of numbers
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    override_eos_token_id_mismatch_error: bool = False
    override_bos_token_id_mismatch_error: bool = False
    mlm_probability: float | None = attrs.field(
        default=None, validator=only(None, "masked language modelling is not supported")
    )
    seq_parallel_replication: int | None = attrs.field(
        default=None, validator=only(None, 1, "sequence parallelism is not supported")
    )

    def __attrs_post_init__(self) -> None:
        """Refuse two ways of telling documents apart."""
        ShardsSpec.__attrs_post_init__(self)
        if self.eos_token_id is not None and self.bos_token_id is not None:
            raise ValueError("only one of eos_token_id and bos_token_id tells documents apart")


@attrs.frozen(kw_only=True)
class TextDataSpec(DataSpec):
    """MDS shards of concatenated tokens, or of text, for pretraining.

    A sample with a column ``tokens`` is taken as it is: longer ones are cut, shorter ones filled
    up, and every end-of-sequence token is learned. A sample with a column ``text`` is tokenized
    while loading, which needs a padding token.

    Attributes:
        dataset: which shards, in what order.
        drop_last: leave out the samples at the end of an epoch that fill no batch; False =
            the last batch is filled up with rows without labels.
        num_workers: processes that read; 0 = in the loop's own process.
        pin_memory: put batches where copies to a GPU run beside work.
        prefetch_factor: batches that each worker makes ahead.
        persistent_workers: keep the processes from epoch to epoch.
        timeout: seconds to wait for a batch before giving up; 0 = forever.
    """

    kind = "text"

    dataset: TextDatasetSpec
    drop_last: bool = True
    num_workers: int = attrs.field(default=2, validator=validators.ge(0))
    pin_memory: bool = True
    prefetch_factor: int = attrs.field(default=2, validator=validators.gt(0))
    persistent_workers: bool = True
    timeout: float = attrs.field(default=0, validator=validators.ge(0))

    def check(self) -> None:
        """Refuse shards on this machine that are missing, broken, or hold something else.

        Raises:
            DataError: naming the folder and what is wrong.
        """
        for name, index in self.dataset.local_indexes().items():
            check_columns(index.columns, f"stream {name!r} ({index.path.parent})")

    def build(self, context: LoaderContext) -> BatchSource:
        """Return this rank's source; every rank of the run calls this.

        Raises:
            DataError: the data is missing, broken, or of another tokenizer or length.
        """
        from foundry_sdk.data.streaming_source import StreamingSource, WorkerOptions

        dataset_spec = self.dataset
        if dataset_spec.max_seq_len not in (None, context.max_seq_len):
            raise DataError(
                f"dataset.max_seq_len is {dataset_spec.max_seq_len}, but the run's max_seq_len "
                f"is {context.max_seq_len}; make them equal, or leave out the dataset's"
            )
        check_document_ids(dataset_spec, context.tokenizer)
        dataset = dataset_spec.open(context)
        try:
            for stream in dataset.streams:
                check_stream(stream, context)
            return StreamingSource(
                dataset,
                make_batch_function(dataset_spec, dataset.streams, context),
                context,
                WorkerOptions(
                    num_workers=self.num_workers,
                    prefetch_factor=self.prefetch_factor,
                    pin_memory=self.pin_memory,
                    persistent_workers=self.persistent_workers,
                    timeout=self.timeout,
                    predownload=dataset_spec.predownload,
                ),
                drop_last=self.drop_last,
            )
        except DataError:
            dataset.close()
            raise


def check_document_ids(
    spec: "TextDatasetSpec | FinetuningDatasetSpec", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Compare the ids that tell documents apart with the tokenizer's.

    Raises:
        DataError: they differ, and the spec does not say that this is meant so.
    """
    for name in ("eos", "bos"):
        given = getattr(spec, f"{name}_token_id")
        own = getattr(tokenizer, f"{name}_token_id")
        if given is None or given == own:
            continue
        flag = f"override_{name}_token_id_mismatch_error"
        what = f"dataset.{name}_token_id is {given}, but the tokenizer's is {own}"
        if not getattr(spec, flag):
            raise DataError(f"{what}; correct it, or set dataset.{flag}: true")
        _log.warning("%s; going on, as %s is set", what, flag)


def check_stream(stream: "VerifiedStream", context: LoaderContext) -> None:
    """Compare a stream with the run: its columns, and the card that says how it was made.

    Raises:
        DataError: it has neither tokens nor text, or was made with another tokenizer or for
            another sequence length.
    """
    columns, vocabulary = stream.index.columns, len(context.tokenizer)
    where = f"stream {stream.name!r} ({stream.folder})"
    match = check_columns(columns, where)
    bits = re.search(r"\d+", match["type"] or "") if match is not None else None
    if match is not None and bits is not None and vocabulary > 1 << int(bits[0]):
        raise DataError(
            f"{where}: tokens are {match['type']}, which holds no vocabulary of {vocabulary}; "
            "the data is of another tokenizer, or was cut short when it was written"
        )
    _check_card(stream, context, where)


def check_columns(columns: Mapping[str, str], where: str) -> "re.Match[str] | None":
    """Refuse columns without tokens or text; return what the encoding of tokens says of them.

    Raises:
        DataError: there is neither, or the tokens are no integers.
    """
    if "tokens" in columns:
        match = _TOKENS.fullmatch(columns["tokens"])
        if match is None:
            raise DataError(f"{where}: tokens are {columns['tokens']}; integers are needed")
        return match
    if "text" not in columns:
        raise DataError(
            f"{where}: a text loader needs a column tokens or text, found {sorted(columns)}; "
            "use the finetuning loader for prompts and responses"
        )
    return None


def _check_card(stream: "VerifiedStream", context: LoaderContext, where: str) -> None:
    from foundry_sdk.data.tokenizer import fingerprint

    card = stream.card
    if card is None:
        _log.info("%s: no data card, so its tokenizer and length are taken on trust", where)
        return
    if card.kind != "tokens":
        return
    own = fingerprint(context.tokenizer)
    if card.tokenizer_sha256 not in (None, own):
        raise DataError(
            f"{where} was made with the tokenizer {card.tokenizer!r} (sha256 "
            f"{card.tokenizer_sha256}), but the run's is {context.tokenizer.name_or_path!r} "
            f"(sha256 {own}); convert the data with the run's tokenizer, or name the data's"
        )
    if card.sequence_length not in (None, context.max_seq_len):
        raise DataError(
            f"{where} was made with --concat-tokens {card.sequence_length}, but max_seq_len is "
            f"{context.max_seq_len}; set max_seq_len: {card.sequence_length}, or convert again"
        )


@attrs.frozen(kw_only=True)
class TokenRows:
    """Samples with a column ``tokens`` → a batch.

    Attributes:
        collate: makes the batch of rows of ids.
        vocabulary: every id is below.
        encoding: numpy's name of the numbers in a column of raw bytes.
    """

    collate: "LanguageModelingCollator"
    vocabulary: int
    encoding: str

    def __call__(self, samples: Sequence[dict[str, Any] | None], sample_ids: "Tensor") -> "Batch":
        """Return the batch.

        Raises:
            DataError: an id is not in the vocabulary, or a sample is no row of ids.
        """
        import numpy as np

        rows = []
        for sample, number in zip(samples, sample_ids.tolist(), strict=True):
            row = None if sample is None else sample["tokens"]
            if isinstance(row, bytes):
                row = np.frombuffer(row, self.encoding)
            if row is not None and (row.ndim != 1 or not np.issubdtype(row.dtype, np.integer)):
                raise DataError(
                    f"sample {number}: tokens must be a row of integers, got {row.dtype} "
                    f"of shape {row.shape}"
                )
            if row is not None and row.size:
                low, high = int(row.min()), int(row.max())
                if low < 0 or high >= self.vocabulary:
                    raise DataError(
                        f"sample {number}: token id {high if low >= 0 else low} is not in the "
                        f"tokenizer's vocabulary of {self.vocabulary}; the data is of another "
                        "tokenizer"
                    )
            rows.append(row)
        return self.collate(rows, sample_ids)


@attrs.frozen(kw_only=True)
class TextRows:
    """Samples with a column ``text`` → a batch, by tokenizing them.

    Attributes:
        collate: makes the batch of rows of ids.
        tokenizer: of the run.
    """

    collate: "LanguageModelingCollator"
    tokenizer: "PreTrainedTokenizerBase"

    def __call__(self, samples: Sequence[dict[str, Any] | None], sample_ids: "Tensor") -> "Batch":
        """Return the batch; what is longer than the sequence length is cut."""
        import numpy as np

        texts = [sample["text"] for sample in samples if sample is not None]
        encoded = iter(())
        if texts:
            ids = self.tokenizer(
                texts, truncation=True, max_length=self.collate.length, padding=False
            )["input_ids"]
            encoded = iter(ids)
        rows = [
            None if sample is None else np.asarray(next(encoded), np.int64) for sample in samples
        ]
        return self.collate(rows, sample_ids)


def make_batch_function(
    spec: TextDatasetSpec, streams: "Sequence[VerifiedStream]", context: LoaderContext
) -> TokenRows | TextRows:
    """Return what makes batches of the streams' samples.

    Raises:
        DataError: some streams have tokens and some text, or text is to be padded without a
            padding token.
    """
    from foundry_sdk.data.collate import LanguageModelingCollator

    tokenizer = context.tokenizer
    with_tokens = {stream.name: "tokens" in stream.index.columns for stream in streams}
    if len(set(with_tokens.values())) > 1:
        raise DataError(
            f"streams: either all have tokens or all have text, got {with_tokens} (True = tokens)"
        )
    padding = tokenizer.pad_token_id
    collate = LanguageModelingCollator(
        length=context.max_seq_len,
        fill=int(tokenizer.eos_token_id if padding is None else padding),
        eos_token_id=spec.eos_token_id,
        bos_token_id=spec.bos_token_id,
    )
    if all(with_tokens.values()):
        encoding = spec.token_encoding_type
        return TokenRows(collate=collate, vocabulary=len(tokenizer), encoding=encoding)
    if padding is None:
        marked = [token for token in tokenizer.all_special_tokens if "pad" in token.lower()]
        choices = [*marked, tokenizer.eos_token]
        raise DataError(
            "text samples are padded, but the tokenizer has no padding token; choose one: "
            + " or ".join(f"tokenizer.kwargs.pad_token: {token!r}" for token in choices)
        )
    return TextRows(collate=collate, tokenizer=tokenizer)
