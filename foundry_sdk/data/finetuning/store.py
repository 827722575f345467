"""Tokenized examples on disk: three flat files that are appended to, and mapped when read.

``tokens.bin`` has the ids of all turns end to end, ``segments.bin`` the lengths of each context
and each target in turn, ``examples.bin`` the number of segments of each example. None of them
knows what is a target or how long a sequence may be, so other options need no new tokenization.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from foundry_sdk.data.finetuning.encode import Turn
from foundry_sdk.data.mds import write_file
from foundry_sdk.errors import DataError

_FILES: Final = ("tokens.bin", "segments.bin", "examples.bin")
_JOURNAL: Final = "written.json"
_WHOLE: Final = "examples.json"
"""There once the folder is complete."""


@attrs.frozen(kw_only=True, eq=False)
class TokenizedExamples:
    """Examples of one source, by their number in it.

    Attributes:
        tokens: int32 (tokens,), mapped from the disk.
        segments: int64 (segments + 1,): where each context or target begins in ``tokens``.
        examples: int64 (examples + 1,): where each example begins in ``segments``.
        chat_template: what made chats among them text; None = there are none.
        folder: where they lie.
        digest: sha256 of the files, the same for the same examples wherever they are from.
    """

    tokens: NDArray[np.int32]
    segments: NDArray[np.int64]
    examples: NDArray[np.int64]
    folder: Path
    digest: str
    chat_template: str | None = None

    def __len__(self) -> int:
        """Return the number of examples, dropped ones included."""
        return len(self.examples) - 1

    def turns(self, number: int) -> list[Turn]:
        """Return an example's turns; views of the file."""
        first, last = self.examples[number], self.examples[number + 1]
        bounds = self.segments[first : last + 1].tolist()
        parts = [self.tokens[a:b] for a, b in pairwise(bounds)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Map the files of a complete folder.

        Raises:
            DataError: a file is missing or has another size than when it was written.
        """
        try:
            whole = json.loads((folder / _WHOLE).read_text())
            counts, digest, template = whole["counts"], whole["sha256"], whole["chat_template"]
            sizes = [(folder / name).stat().st_size for name in _FILES]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: tokenized examples cannot be read: {error}") from error
        if sizes != [4 * count for count in counts]:
            raise DataError(
                f"{folder}: a file of tokenized examples has another size than when it was "
                "written; delete the folder, and it is made again"
            )
        arrays: list[NDArray[np.int32]] = [
            np.memmap(folder / name, np.int32, "r") if count else np.empty(0, np.int32)
            for name, count in zip(_FILES, counts, strict=True)
        ]
        return cls(
            tokens=arrays[0],
            segments=_starts(arrays[1]),
            examples=_starts(arrays[2]),
            folder=folder,
            digest=digest,
            chat_template=template,
        )


def is_whole(folder: Path) -> bool:
    """Tell whether the examples of ``folder`` are complete."""
    return (folder / _WHOLE).is_file()


class ExampleWriter:
    """Appends examples to a folder. What was written before a kill is kept, and gone on from."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, and cut off what was not recorded as written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._counts = [0, 0, 0]
        self._chat_template: str | None = None
        journal = folder / _JOURNAL
        if journal.is_file():
            written = json.loads(journal.read_text())
            self._counts = [int(count) for count in written["counts"]]
            self._chat_template = written["chat_template"]
        self._files: list[IO[bytes]] = []
        for name, count in zip(_FILES, self._counts, strict=True):
            opened = (folder / name).open("ab")
            self._files.append(opened)
            if opened.tell() < 4 * count:  # what was recorded has not reached the disk
                self._counts = [0, 0, 0]
        for file, count in zip(self._files, self._counts, strict=True):
            file.truncate(4 * count)

    @property
    def examples(self) -> int:
        """Return how many examples are recorded as written."""
        return self._counts[2]

    @property
    def tokens(self) -> int:
        """Return how many tokens are recorded as written."""
        return self._counts[0]

    def append(
        self, examples: Sequence[Sequence[Turn]], *, chat_template: str | None = None
    ) -> None:
        """Write examples and record them.

        Args:
            examples: turns of each.
            chat_template: what made chats among them text; None = there are none.
        """
        segments = [part for turns in examples for turn in turns for part in turn]
        arrays = [
            np.concatenate(segments) if segments else np.empty(0, np.int32),
            np.array([len(part) for part in segments], np.int32),
            np.array([2 * len(turns) for turns in examples], np.int32),
        ]
        for number, (file, array) in enumerate(zip(self._files, arrays, strict=True)):
            file.write(array.astype(np.int32, copy=False).tobytes())
            file.flush()
            self._counts[number] += len(array)
        self._chat_template = chat_template or self._chat_template
        journal = {"counts": self._counts, "chat_template": self._chat_template}
        write_file(self._folder / _JOURNAL, json.dumps(journal).encode())

    def finish(self, about: dict[str, Any]) -> None:
        """Bring everything to the disk and mark the folder complete."""
        for file in self._files:
            os.fsync(file.fileno())
        self.close()
        digest = hashlib.sha256()
        for name in _FILES:
            with (self._folder / name).open("rb") as written:
                digest.update(hashlib.file_digest(written, "sha256").digest())
        whole = {
            "counts": self._counts,
            "chat_template": self._chat_template,
            "sha256": digest.hexdigest(),
            "about": about,
        }
        write_file(self._folder / _WHOLE, json.dumps(whole, indent=1).encode())
        (self._folder / _JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other processes; the lock ends with this one, however it ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _starts(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
