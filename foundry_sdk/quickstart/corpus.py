"""Real text that every machine with Python has: the source of the standard library."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.errors import DataError

# Installed packages, tests, and modules that are tables rather than code.
_LEFT_OUT: Final = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}
    | {"encodings", "pydoc_data"}
)
_EVERY: Final = 8
"""One module in this many is for validation."""
_LEAST: Final = 200_000
"""Bytes below which there is not enough to train on."""


@attrs.frozen(kw_only=True)
class Corpus:
    """Folders of ``.txt`` files, one per module of the standard library.

    Attributes:
        train, validation: the folders.
        files: in both.
        bytes: in both.
        source: where the text is from.
    """

    train: Path
    validation: Path
    files: int
    bytes: int
    source: Path


def write_corpus(folder: Path, *, max_bytes: int, stdlib: Path | None = None) -> Corpus:
    """Write up to ``max_bytes`` of the standard library's source into ``folder``.

    Args:
        folder: is made; gets ``train`` and ``val``.
        max_bytes: of text, in UTF-8.
        stdlib: another folder of Python files instead.

    Raises:
        DataError: this Python comes without the source of its library.
    """
    source = stdlib or Path(sysconfig.get_path("stdlib"))
    train, validation = folder / "train", folder / "val"
    for target in (train, validation):
        target.mkdir(parents=True, exist_ok=True)
    files = total = 0
    for name, text in _modules(source):
        size = len(text.encode())
        if total + size > max_bytes:
            continue
        target = validation if files % _EVERY == _EVERY - 1 else train
        (target / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
        files, total = files + 1, total + size
    if total < _LEAST or files < _EVERY:
        raise DataError(
            f"{source}: {total:,} bytes of Python source in {files} files, expected at least "
            f"{_LEAST:,}; this Python has no source of its standard library: use another one"
        )
    return Corpus(train=train, validation=validation, files=files, bytes=total, source=source)


def _modules(source: Path) -> Iterator[tuple[str, str]]:
    """Yield dotted name and text of each module, in the order of names."""
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source).with_suffix("")
        if _LEFT_OUT.intersection(relative.parts):
            continue
        try:
            yield ".".join(relative.parts), path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a few modules declare an older encoding
