"""``foundry drill``: faults rehearsed on this machine, and proof that nothing is lost."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foundry_sdk.errors import RunError, SpecError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from foundry_sdk.drill.drills import Tell
    from foundry_sdk.drill.rehearsal import DrillResult, Outcome

_SHORT_SECONDS = 600.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("drill")(drill)


def drill(
    spec: Annotated[
        Path | None,
        typer.Argument(help="YAML file of a run; by default a tiny one.", show_default=False),
    ] = None,
    *,
    full: Annotated[
        bool,
        typer.Option("--full", help="Every moment with every fault: about an hour and a half."),
    ] = False,
    processes: Annotated[
        int, typer.Option("--processes", "-n", min=1, help="Processes of each run.")
    ] = 2,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Where runs and report go: a new or empty folder on the storage to rehearse on; "
            "by default a temporary one, and the report into the working directory.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", metavar="PATTERN", help="Only these points, such as 'checkpoint.*'."
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=1,
            help="Begin no new fault after so long; by default 600, with --full never.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Kill, fail and hang a run wherever that can be, and see that nothing is lost.

    A short run is made undisturbed, then again and again with one fault each:
    kill -9, an I/O error, a full disk or a hang, at a write, fsync, rename,
    collective, download or conversion. Each time the plain command goes on with it
    to its end, and losses, gradient norms, the samples of every step and the final
    weights must be those of the undisturbed run, bit for bit.

    Writes drill.json and drill.md. Exit code 0 only where every fault was
    survived. The tiny run needs a CPU, two to three minutes and no network.

    Examples:
      foundry drill
      foundry drill --folder /mnt/shared/drill --only 'checkpoint.*'
      foundry drill --full --processes 1
      foundry drill pretrain.yaml -n 8 --folder /mnt/shared/drill --seconds 3600
    """
    from rich.console import Console

    console = Console(highlight=False)
    if spec is not None and not spec.is_file():
        raise SpecError(f"{spec}: no such file; give the YAML file of a run, or leave it out")
    limit = seconds if seconds is not None or full else _SHORT_SECONDS
    with ExitStack() as until_done:
        place = _place(folder, until_done)
        result = _rehearse(
            console, place, spec, processes=processes, full=full, only=only, seconds=limit
        )
        _show(console, result)
        about = "a tiny run" if spec is None else f"a few steps of {spec.name}"
        _write(console, result, folder or Path(), about=about, processes=processes, full=full)
        if not result.survived:
            until_done.pop_all()  # what was lost is there to be looked at
            console.print(f"kept {place}", markup=False)
    if not result.survived:
        raise typer.Exit(1)


def _place(folder: Path | None, until_done: ExitStack) -> Path:
    """Return an empty folder."""
    if folder is None:
        made = Path(tempfile.mkdtemp(prefix="foundry-drill-"))
        until_done.callback(shutil.rmtree, made)
        return made
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"--folder {folder}: is not empty; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--folder {folder}: cannot be made: {error.strerror}") from error
    return folder.resolve()


def _rehearse(
    console: "Console",
    place: Path,
    spec: Path | None,
    *,
    processes: int,
    full: bool,
    only: str | None,
    seconds: float | None,
) -> "DrillResult":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from foundry_sdk.drill.drills import drill_spec, drill_tiny

    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tell = _teller(progress)
        if spec is None:
            return drill_tiny(
                place, processes=processes, full=full, only=only, seconds=seconds, tell=tell
            )
        return drill_spec(
            place, spec, processes=processes, full=full, only=only, seconds=seconds, tell=tell
        )


def _teller(progress: "Progress") -> "Tell":
    task = progress.add_task("the undisturbed run", total=None)

    def tell(outcome: "Outcome", done: int, planned: int) -> None:
        fault = outcome.fault
        about = f"{fault.action} at {fault.point} #{fault.nth}, rank {fault.rank}"
        progress.update(task, description=about, completed=done, total=planned)
        if outcome.problem is not None:
            progress.console.print(f"{about}: {outcome.problem}", style="red", markup=False)

    return tell


def _show(console: "Console", result: "DrillResult") -> None:
    from rich.table import Table

    from foundry_sdk.drill.report import COLUMNS, rows, summary

    table = Table(*COLUMNS)
    for row in rows(result.outcomes):
        table.add_row(*row.cells(), style="red" if row.lost else None)
    console.print(table)
    style = "bold green" if result.survived else "bold red"
    console.print(summary(result), style=style, markup=False)


def _write(
    console: "Console",
    result: "DrillResult",
    folder: Path,
    *,
    about: str,
    processes: int,
    full: bool,
) -> None:
    from foundry_sdk.drill.report import write

    for path in write(result, folder, about=about, processes=processes, full=full):
        console.print(f"wrote {path}", markup=False)
