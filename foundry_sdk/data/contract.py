"""What data promises: specs of loaders, sources of batches, preprocessors, the tokenizer."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import attrs

from foundry_sdk.component import ComponentSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.batch import Batch

    Tokenizer = PreTrainedTokenizerBase


@attrs.frozen(kw_only=True)
class TokenizerSpec:
    """Which tokenizer: a folder or a name on the hub, and what is passed on to it.

    Not a component: ``name`` is a value here, not a tag.
    """

    name: str
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class LoaderContext:
    """What a loader is built for.

    Attributes:
        tokenizer: of the run.
        rank, world_size: of this process; the source takes its own share.
        device_batch: sequences per rank and step, exactly that many in each batch.
        max_seq_len: of the run; a dataset that gives none takes this.
        seed: of the run.
        training: False for an eval loader: one pass, in order, short last batches padded with
            rows without labels so that every rank has equally many batches.
        encoder_decoder: the model reads with an encoder and learns with a decoder.
        isolates_documents: the model keeps documents of a row apart, by ``sequence_ids``.
        cache_dir: folder of the run where downloaded shards may lie; None = the spec must say.
    """

    tokenizer: "Tokenizer"
    rank: int
    world_size: int
    device_batch: int
    max_seq_len: int
    seed: int
    training: bool
    encoder_decoder: bool = False
    isolates_documents: bool = False
    cache_dir: Path | None = None


class BatchSource(Protocol):
    """Batches of one rank. The one place that knows about shards and workers."""

    def __iter__(self) -> "Iterator[Batch]":
        """Yield the rest of the epoch: ``device_batch`` sequences each, equally many per rank.

        The next iterator is the next epoch, in its own order.
        """

    def batches_per_epoch(self) -> int | None:
        """Return the batches of a whole epoch; None for data without a known end."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position (JSON values): batches that the loop took, not the workers.

        It is the same on every rank and fits any number of ranks of the same global batch.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""

    def describe(self) -> dict[str, Any]:
        """Return what the run's record says of the data: card digests, shares of streams."""

    def close(self) -> None:
        """Stop workers and give shared memory back."""


@attrs.frozen(kw_only=True)
class DataSpec(ComponentSpec):
    """Family of loaders (``train_loader``, ``eval_loader``)."""

    family = "data"

    def check(self) -> None:
        """Refuse data on this machine that is missing or broken, before anything is built.

        Nothing is fetched and no sample is read; ``build`` looks again, and closer.

        Raises:
            DataError: with what to change.
        """

    @abstractmethod
    def build(self, context: LoaderContext) -> BatchSource:
        """Return this rank's source.

        Raises:
            DataError: the data is missing, broken, or of another tokenizer or length.
        """


class PromptResponse(TypedDict):
    """One finetuning example: the text that is read and the text that is learned."""

    prompt: str
    response: str


class ChatExample(TypedDict):
    """One conversation: ``role`` and ``content`` of each message."""

    messages: Sequence[Mapping[str, Any]]


Preprocess = Callable[[Mapping[str, Any]], PromptResponse | ChatExample]


@attrs.frozen(kw_only=True)
class PreprocessorSpec(ComponentSpec):
    """Family of functions that turn one dataset row into one example."""

    family = "preprocessor"

    @abstractmethod
    def build(self) -> Preprocess:
        """Return the function that is mapped over the dataset's rows."""
