"""The command ``foundry``: global options, the list of command files, and exit codes."""

import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

import typer

from foundry_sdk import __version__
from foundry_sdk.cli import (
    chat,
    check,
    data,
    drill,
    model,
    new_plugin,
    plan,
    plugins,
    quickstart,
    runs,
    train,
)
from foundry_sdk.errors import FoundryError
from foundry_sdk.runs.redact import redact_text

app = typer.Typer(
    name="foundry",
    help="Pretrain and finetune language models from typed specs and plugins.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Each file of commands has register(app); their order is the order of `foundry --help`.
for commands in (
    chat,
    check,
    data,
    drill,
    model,
    new_plugin,
    plan,
    plugins,
    quickstart,
    runs,
    train,
):
    commands.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foundry-sdk {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in the line).")
    ] = False,
) -> None:
    """Pretrain and finetune language models from typed specs and plugins."""
    del version, debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the input must be changed, 1 the run failed.

    Raises:
        SystemExit: always.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    ours = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in ours
    rest = [word for word in ours if word != "--debug"] + given[len(ours) :]
    sys.excepthook = _print_unforeseen
    try:
        app(args=rest, prog_name="foundry")
    except FoundryError as error:
        if debug:
            _print_unforeseen(type(error), error, error.__traceback__)
        for line in redact_text(str(error)).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise SystemExit(error.exit_code) from error
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        sys.stderr.close()
        raise SystemExit(0) from None


def _print_unforeseen(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """Print a traceback as Python does, but without the secrets that its messages may hold."""
    lines = "".join(traceback.format_exception(kind, error, where))
    typer.echo(redact_text(lines), err=True, nl=False)


if __name__ == "__main__":
    main()
