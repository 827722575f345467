"""``python -m foundry_sdk_code_instruct``: pairs of a folder of Python files, as JSON Lines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from foundry_sdk.errors import FoundryError
from foundry_sdk_code_instruct.mining import mine
from foundry_sdk_code_instruct.preprocessor import TEMPLATE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folder: Annotated[
        Path, typer.Argument(help="Searched with its subfolders.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="JSON Lines to write.", show_default=False)],
    *,
    pattern: Annotated[str, typer.Option(help="Names of files with Python source.")] = "*.py",
    methods: Annotated[bool, typer.Option("--methods", help="Methods of classes too.")] = False,
    max_characters: Annotated[
        int | None, typer.Option("--max-characters", min=1, help="Leave longer pairs out.")
    ] = None,
    max_pairs: Annotated[
        int | None, typer.Option("--max-pairs", min=1, help="Lines at most.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="Of the prompt; with {docstring}, and {name} if you like.")
    ] = TEMPLATE,
) -> None:
    """Write prompt and response for each function that has a docstring.

    The docstring is the prompt, the function without it the response.
    """
    if "{docstring}" not in template:
        raise typer.BadParameter("{docstring} must be in it", param_hint="--template")
    try:
        with _bar(folder) as report:
            mined = mine(
                folder,
                out,
                template=template,
                pattern=pattern,
                methods=methods,
                max_characters=max_characters,
                max_pairs=max_pairs,
                report=report,
            )
    except FoundryError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    unreadable = f", {len(mined.unreadable)} of them no Python" if mined.unreadable else ""
    typer.echo(f"{out}: {mined.pairs:,} pairs from {mined.files:,} files{unreadable}")


@contextmanager
def _bar(folder: Path) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, where that is a terminal; give what moves it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"Python files of {folder.name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    app(prog_name="python -m foundry_sdk_code_instruct")
