"""The options that all commands of ``foundry data convert`` for documents have in common."""

import functools
import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

import attrs
import typer

from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from foundry_sdk.data.convert.options import ConversionOptions
    from foundry_sdk.data.convert.run import Report

Errors = Literal["strict", "replace", "skip"]
OutRoot = Annotated[
    str, typer.Option("--out-root", help="Local folder, or s3://bucket/prefix.", metavar="PATH")
]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Where a row has its document.", metavar="NAME")
]
_REPLACE: Final = "Replace what is there, once the new data is whole."


@attrs.frozen(kw_only=True)
class Flags:
    """``ConversionOptions`` as flags of a command."""

    concat_tokens: Annotated[
        int | None,
        typer.Option(
            "--concat-tokens", help="Token ids a row. Without: a document a row, as text."
        ),
    ] = None
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder, or name on the hub.", metavar="NAME")
    ] = None
    tokenizer_kwargs: Annotated[
        str,
        typer.Option("--tokenizer-kwargs", help="JSON object for the tokenizer.", metavar="JSON"),
    ] = "{}"
    bos_text: Annotated[str, typer.Option("--bos-text", help="Put before each document.")] = ""
    eos_text: Annotated[str, typer.Option("--eos-text", help="Put after each document.")] = ""
    no_wrap: Annotated[
        bool,
        typer.Option("--no-wrap", help="Throw away the rest of a document that fills a row."),
    ] = False
    compression: Annotated[
        str, typer.Option("--compression", help="zstd, zstd:7, gz, bz2, br, snappy or none.")
    ] = "none"
    max_samples: Annotated[
        int | None, typer.Option("--max-samples", help="Write at most this many rows.")
    ] = None
    errors: Annotated[
        Errors, typer.Option("--errors", help="What becomes of bytes that are not UTF-8.")
    ] = "strict"
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers", "--processes", help="Tokenizing processes. Default: all cores."
        ),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same conversion where it stopped.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help=_REPLACE)] = False

    def options(self, report: "Report") -> "ConversionOptions":
        """Return the keywords of the functions.

        Args:
            report: is called with the progress.

        Raises:
            DataError: ``--tokenizer-kwargs`` is no JSON object.
        """
        return {
            "concat_tokens": self.concat_tokens,
            "tokenizer": self.tokenizer,
            "tokenizer_kwargs": json_object(self.tokenizer_kwargs),
            "bos_text": self.bos_text,
            "eos_text": self.eos_text,
            "no_wrap": self.no_wrap,
            "compression": None if self.compression in {"none", ""} else self.compression,
            "max_samples": self.max_samples,
            "errors": self.errors,
            "num_workers": self.num_workers,
            "resume": self.resume,
            "overwrite": self.overwrite,
            "report": report,
        }


@attrs.frozen(kw_only=True)
class TextFlags(Flags):
    """Those of ``foundry data convert text``, as in LLM Foundry."""

    compression: Annotated[
        str, typer.Option("--compression", help="zstd, zstd:7, gz, bz2, br, snappy or none.")
    ] = "zstd"
    overwrite: Annotated[bool, typer.Option("--overwrite", "--reprocess", help=_REPLACE)] = False


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of its parameter ``flags``, which typer then shows as its own.

    Args:
        command: has a keyword-only parameter ``flags: Flags``, or of a class made of it.
    """
    hints = get_type_hints(command, include_extras=True)
    flags = hints.pop("flags")
    shared = attrs.fields(flags)
    spelled = get_type_hints(flags, include_extras=True)

    @functools.wraps(command)
    def whole(**values: Any) -> None:  # noqa: ANN401 - what typer read, by the signature below
        given = flags(**{field.name: values.pop(field.name) for field in shared})
        command(**values, flags=given)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=spelled[field.name],
        )
        for field in shared
    ]
    every: Any = whole
    every.__signature__ = inspect.Signature([*own, *added], return_annotation=None)
    every.__annotations__ = {**hints, **{field.name: spelled[field.name] for field in shared}}
    return whole


def json_object(text: str) -> dict[str, Any]:
    """Return the value of ``--tokenizer-kwargs``.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"--tokenizer-kwargs: not JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise DataError(f"--tokenizer-kwargs: expected a JSON object such as {{}}, got {text!r}")
    return value
