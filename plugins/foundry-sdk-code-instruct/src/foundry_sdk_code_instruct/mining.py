"""Pairs from all Python files of a folder, as JSON Lines."""

import json
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from foundry_sdk.errors import DataError
from foundry_sdk_code_instruct.functions import DocumentedFunction, documented_functions
from foundry_sdk_code_instruct.preprocessor import TEMPLATE, example_of


@attrs.frozen(kw_only=True)
class Mined:
    """What came of a folder.

    Attributes:
        pairs: written lines.
        files: Python files that were read.
        unreadable: files that are no Python (of the version that runs this), relative to it.
    """

    pairs: int
    files: int
    unreadable: tuple[str, ...]


def mine(
    folder: str | Path,
    out: str | Path,
    *,
    template: str = TEMPLATE,
    pattern: str = "*.py",
    methods: bool = False,
    max_characters: int | None = None,
    max_pairs: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Mined:
    """Write a line with ``prompt``, ``response`` and ``origin`` for each function in ``folder``.

    Files are read in sorted order, so the result is the same for the same files. A response that
    was written before is left out.

    Args:
        folder: searched with its subfolders; tests (folders ``test`` and ``tests``) are left out.
        out: file to write; its folder is made.
        template: as of ``CodeInstructSpec``.
        pattern: names of files with Python source.
        methods: those of classes too.
        max_characters: longer pairs are left out.
        max_pairs: lines at most.
        report: called before each file with how many are done and how many there are, and once
            more when all are.

    Raises:
        DataError: the folder has no such file, or none of them a function with a docstring.
    """
    folder, out = Path(folder), Path(out)
    unreadable: list[str] = []
    paths = [path for path in sorted(folder.rglob(pattern)) if not _is_test(path, folder)]
    if not paths:
        raise DataError(f"{folder}: no file {pattern} in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    seen: set[str] = set()
    with partial.open("w", encoding="utf-8") as lines:
        for origin, function in _functions(paths, folder, unreadable, methods, report):
            example = example_of(function, template)
            length = len(example["prompt"]) + len(example["response"])
            if example["response"] in seen or (max_characters and length > max_characters):
                continue
            if max_pairs is not None and len(seen) >= max_pairs:
                break
            seen.add(example["response"])
            lines.write(json.dumps({**example, "origin": origin}, ensure_ascii=False) + "\n")
    if not seen:
        partial.unlink()
        short = f" and at most {max_characters} characters" if max_characters else ""
        raise DataError(
            f"{folder}: no function with a docstring{short} in {len(paths)} Python files"
        )
    partial.replace(out)
    return Mined(pairs=len(seen), files=len(paths), unreadable=tuple(unreadable))


def _is_test(path: Path, folder: Path) -> bool:
    return bool({"test", "tests"} & set(path.relative_to(folder).parts[:-1]))


def _functions(
    paths: list[Path],
    folder: Path,
    unreadable: list[str],
    methods: bool,
    report: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, DocumentedFunction]]:
    """Yield each function with ``file:name``; note files that cannot be read."""
    for done, path in enumerate(paths):
        if report is not None:
            report(done, len(paths))
        file = path.relative_to(folder).as_posix()
        try:
            with tokenize.open(path) as text:  # in the encoding that the file declares
                source = text.read()
            found = list(documented_functions(source, methods=methods))
        except (SyntaxError, ValueError, RecursionError):
            unreadable.append(file)
            continue
        for function in found:
            yield f"{file}:{function.name}", function
    if report is not None:
        report(len(paths), len(paths))
