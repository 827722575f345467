"""What every conversion of documents takes besides its input and its output."""

import difflib
from collections.abc import Mapping
from typing import Any, Final, TypedDict

from foundry_sdk.data.convert.encode import Errors
from foundry_sdk.data.convert.recipe import Recipe
from foundry_sdk.data.convert.run import Job, Report


class ConversionOptions(TypedDict, total=False):
    """Keywords of ``convert_json``, ``convert_text`` and ``convert_hf``, all optional.

    Attributes:
        concat_tokens: ids a row. Without, each document is a row of text.
        tokenizer: folder or name on the hub; needed with ``concat_tokens``.
        tokenizer_kwargs: passed on to ``AutoTokenizer.from_pretrained``.
        bos_text: put before each document.
        eos_text: put after each document.
        no_wrap: throw away the rest of a document that fills a row.
        compression: "zstd", "zstd:7", "gz", "bz2", "br" or "snappy", each with or without level.
        max_samples: rows written at most, in each split.
        errors: what becomes of bytes that are not UTF-8: "strict" is an error (the default),
            "replace" writes U+FFFD, "skip" leaves the document out; the card counts both.
        size_limit: bytes of a shard before compression; 64 MiB.
        num_workers: tokenizing processes; by default one a core. The result is the same for any.
        resume: go on with the same conversion, unfinished or finished.
        overwrite: replace what is there, once the new data is whole.
        report: called about once a second with the progress.
    """

    concat_tokens: int | None
    tokenizer: str | None
    tokenizer_kwargs: Mapping[str, Any] | None
    bos_text: str
    eos_text: str
    no_wrap: bool
    compression: str | None
    max_samples: int | None
    errors: Errors
    size_limit: int
    num_workers: int | None
    resume: bool
    overwrite: bool
    report: Report | None


_OF_JOB: Final = {
    "num_workers": "workers",
    "resume": "resume",
    "overwrite": "overwrite",
    "report": "report",
}


def recipe_of(options: ConversionOptions, *, text_column: str = "text") -> Recipe:
    """Return what is to be written.

    Raises:
        DataError: options that cannot be, or contradict each other.
        TypeError: a keyword that is none of the options.
    """
    known = ConversionOptions.__annotations__
    for key in options.keys() - known.keys():
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
        raise TypeError(f"unexpected keyword argument {key!r}{hint}")
    values: dict[str, Any] = {key: value for key, value in options.items() if key not in _OF_JOB}
    values["wrap"] = not values.pop("no_wrap", False)
    values["tokenizer_kwargs"] = values.get("tokenizer_kwargs") or {}
    return Recipe(**values, text_column=text_column)


def job_of(options: ConversionOptions) -> Job:
    """Return how the conversion is to be run.

    Raises:
        DataError: options that cannot be.
    """
    given: dict[str, Any] = {
        _OF_JOB[key]: value for key, value in options.items() if key in _OF_JOB
    }
    return Job(**given)
