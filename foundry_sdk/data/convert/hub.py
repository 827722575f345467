"""A dataset of the hub, or of a folder that ``datasets`` reads, as a source of documents."""

import textwrap
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from foundry_sdk.data.card import SourceFile
from foundry_sdk.data.convert.encode import Errors, missing_column, replace_surrogates
from foundry_sdk.data.convert.split import Splitter
from foundry_sdk.data.convert.units import UNIT, Position, Unit, document_units, texts_unit
from foundry_sdk.errors import DataError, FoundryError

if TYPE_CHECKING:
    from datasets import IterableDataset


@attrs.frozen
class NamedSplit:
    """What a split's folder holds.

    Attributes:
        hf_split: the dataset's own split.
        max_samples: rows written at most.
    """

    hf_split: str
    max_samples: int | None = None


_PILE: Final = {
    "train": NamedSplit("train"),
    "train_small": NamedSplit("train", 100_000),
    "val": NamedSplit("validation"),
    "val_small": NamedSplit("validation", 10_000),
    "val_xsmall": NamedSplit("validation", 3_000),
}
NAMED_SPLITS: Final[Mapping[str, Mapping[str, NamedSplit]]] = MappingProxyType(
    {
        "allenai/c4": {**_PILE, "val_xxsmall": NamedSplit("validation", 100)},
        "the_pile": _PILE,
    }
)
DEFAULT_SPLITS: Final = ("train", "train_small", "val", "val_small", "val_xsmall")
ALIASES: Final = MappingProxyType({"c4": "allenai/c4"})


def plan_splits(
    dataset: str, splits: Sequence[str], *, hf_split: str | None, max_samples: int | None
) -> dict[str, NamedSplit]:
    """Return what each folder gets; ``dataset`` without alias.

    Raises:
        DataError: the dataset has no such split, or ``hf_split`` fits several.
    """
    known = NAMED_SPLITS.get(dataset, {})
    names = list(splits) or [*(DEFAULT_SPLITS if known and hf_split is None else ("train",))]
    if len(set(names)) < len(names):
        raise DataError(f"splits: {', '.join(names)}: one is named twice")
    if hf_split is not None:
        if len(names) > 1:
            raise DataError(
                f"hf_split {hf_split!r} with several splits ({', '.join(names)}); give one split"
            )
        return {names[0]: NamedSplit(hf_split, max_samples)}
    unknown = [name for name in names if known and name not in known]
    if unknown:
        raise DataError(
            f"splits: {dataset} has no {unknown[0]!r} here; known are {', '.join(known)}; for "
            "another one give --hf-split with the dataset's own name of it"
        )
    planned = {name: known.get(name, NamedSplit(name)) for name in names}
    if max_samples is None:
        return planned
    return {
        name: attrs.evolve(split, max_samples=min(max_samples, split.max_samples or max_samples))
        for name, split in planned.items()
    }


def pinned_revision(dataset: str) -> str | None:
    """Return the newest commit of a dataset of the hub, so that all splits are of one state.

    None for a folder or a file format.

    Raises:
        DataError: the package ``datasets`` is not installed; the hub cannot be reached, or has
            no such dataset.
    """
    if find_spec("datasets") is None:
        raise DataError(f"dataset {dataset!r}: needs the package datasets; pip install datasets")
    if Path(dataset).expanduser().exists():
        return None
    from huggingface_hub import HfApi

    with _named(dataset):
        return HfApi().dataset_info(dataset).sha


@attrs.define(kw_only=True, eq=False)
class HubRows:
    """Rows of one split, streamed.

    Attributes:
        dataset: name on the hub, or a folder.
        subset: its configuration.
        hf_split: the dataset's own name of the split.
        revision: commit; None for a folder.
    """

    dataset: str
    subset: str | None
    hf_split: str
    revision: str | None
    column: str
    errors: Errors

    def identity(self) -> Mapping[str, Any]:
        """See ``Source``."""
        return {
            "dataset": self.dataset,
            "subset": self.subset,
            "hf_split": self.hf_split,
            "revision": self.revision,
        }

    def total(self) -> int | None:
        """See ``Source``: only reading to the end tells."""
        return None

    def files(self, end: Position | None) -> Sequence[SourceFile]:
        """See ``Source``."""
        del end  # whatever was read, the commit says what it was
        parts = [self.dataset, self.subset, self.hf_split]
        path = ":".join(part for part in parts if part is not None)
        return [SourceFile(path=path, revision=self.revision)]

    def units(self, start: Position | None, splitter: Splitter | None) -> Iterator[Unit]:
        """See ``Source``."""
        base: Position = (
            {"rows": 0, "state": None, "skip": 0, "char": 0} if start is None else start
        )
        with _named(self.dataset):
            dataset = self._load(base["state"])
        # Closed also after an error: Arrow's reading threads must not outlive the interpreter.
        with closing(self._rows(dataset)) as rows:
            yield from self._units_of(rows, dataset, base, splitter)

    def _units_of(
        self,
        rows: Generator[Mapping[str, Any], None, None],
        dataset: "IterableDataset",
        base: Position,
        splitter: Splitter | None,
    ) -> Iterator[Unit]:
        for _ in range(base["skip"]):
            next(rows)
        char = base["char"]
        group = _Group(row=base["rows"] + base["skip"])
        for row in rows:
            before = {**base, "skip": group.row - base["rows"], "char": 0}
            text = self._add(row, group)
            is_long = splitter is not None and len(text) > UNIT
            if not is_long and group.size < UNIT:
                continue
            after = self._after(dataset, group.row)
            place = self._place(group.row)
            if not is_long:
                yield group.take(place, after=after)
            else:
                group.texts.pop()
                group.size = 0
                replaced = int(group.last_was_replaced)
                group.replaced -= replaced
                if group.texts:
                    yield group.take(self._place(group.row - 1), after=before)
                yield from document_units(
                    text,
                    splitter,
                    start=char,
                    inside=before,
                    after=after,
                    place=place,
                    read=(group.row - 1, group.row),
                    replaced=replaced,
                )
                char = 0
            base = after
        yield group.take(self._place(group.row), after=self._after(dataset, group.row))

    def _load(self, state: Mapping[str, Any] | None) -> "IterableDataset":
        from datasets import load_dataset

        dataset: IterableDataset = load_dataset(
            str(Path(self.dataset).expanduser()) if self.revision is None else self.dataset,
            name=self.subset,
            split=self.hf_split,
            revision=self.revision,
            streaming=True,
        )
        if dataset.column_names and self.column in dataset.column_names:
            dataset = dataset.select_columns([self.column])  # others need not be decoded
        if state is not None:
            dataset.load_state_dict(dict(state))
        return dataset

    def _rows(self, dataset: "IterableDataset") -> Generator[Mapping[str, Any], None, None]:
        with closing(iter(dataset)) as rows:
            while True:
                with _named(self.dataset):
                    row = next(rows, None)
                if row is None:
                    return
                yield row

    def _add(self, row: Mapping[str, Any], group: "_Group") -> str:
        """Put a row's document into the group; return it, or "" where it is left out."""
        group.row += 1
        group.last_was_replaced = False
        place = self._place(group.row)
        if self.column not in row:
            raise DataError(f"{place}: {missing_column(self.column, row)}")
        text = row[self.column]
        if not isinstance(text, str):
            raise DataError(
                f"{place}: column {self.column!r}: expected a string, got {type(text).__name__}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.errors == "strict":
                raise DataError(
                    f"{place}: lone surrogate U+{ord(text[error.start]):04X} at character "
                    f"{error.start}; choose errors: replace or skip"
                ) from error
            if self.errors == "skip":
                group.skipped += 1
                return ""
            text = replace_surrogates(text)
            group.replaced += 1
            group.last_was_replaced = True
        group.empty += not text
        group.texts.extend([text] if text else [])
        group.size += len(text)
        return text

    def _after(self, dataset: "IterableDataset", row: int) -> Position:
        return {"rows": row, "state": dataset.state_dict(), "skip": 0, "char": 0}

    def _place(self, row: int) -> str:
        return f"{self.dataset}:{self.hf_split} row {row}"


@attrs.define
class _Group:
    """Documents that are still too few for a unit."""

    row: int
    texts: list[str] = attrs.field(factory=list)
    size: int = 0
    empty: int = 0
    skipped: int = 0
    replaced: int = 0
    last_was_replaced: bool = False

    def take(self, place: str, *, after: Position) -> Unit:
        unit = texts_unit(
            self.texts,
            after=after,
            place=place,
            read=self.row,
            empty=self.empty,
            skipped=self.skipped,
            replaced=self.replaced,
        )
        self.texts, self.size = [], 0
        self.empty = self.skipped = self.replaced = 0
        return unit


@contextmanager
def _named(dataset: str) -> Iterator[None]:
    """Say which dataset a library's error is about."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # Its base is the HTTP library's own error, whichever library this release is built on.
    network_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except FoundryError:
        raise
    except (OSError, ValueError, DatasetsError, network_error) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise DataError(
            f"dataset {dataset!r}: {textwrap.shorten(reason, 300)}; check the name, the subset "
            "(--data-subset), the split (--hf-split) and the network, or give a local folder"
        ) from error
