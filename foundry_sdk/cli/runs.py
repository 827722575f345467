"""``foundry runs``, ``foundry report`` and ``foundry diff``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foundry_sdk.runs.diff import Difference, LossDifference

_Root = Annotated[Path, typer.Option("--root", help="Where runs are that are given by name.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("runs")(list_all)
    app.command("report")(report)
    app.command("diff")(diff)


def list_all(
    root: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = _RUNS,
    as_json: _Json = False,
) -> None:
    """List the runs under a folder: status, steps, loss, tokens per second, age.

    A run that says it is running, but whose process is gone, has the status
    "died"; start it again with autoresume: true.

    Examples:
      foundry runs
      foundry runs /data/runs --json
    """
    from foundry_sdk.runs.listing import list_runs

    runs = list_runs(root)
    if as_json:
        typer.echo(json.dumps([run.plain() for run in runs], indent=2))
        return
    if not runs:
        typer.echo(f"no runs under {root}")
        return
    rows = [
        (
            run.name,
            run.status,
            "" if run.step is None else f"{run.step:,}",
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            "" if run.started is None else f"{run.started:%Y-%m-%d %H:%M}",
            "" if run.seconds is None else _duration(run.seconds),
            run.reason or "",
        )
        for run in runs
    ]
    _print_table(
        ("run", "status", "steps", "loss", "tokens/s", "started (UTC)", "took", "reason"), rows
    )


def report(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; by default report.html in the run."),
    ] = None,
    root: _Root = _RUNS,
) -> None:
    """Write one HTML page about a run that needs no other file.

    It has the curves, everything that was chosen for you, the last values,
    checkpoints, data, versions, commands and the resolved spec.

    Examples:
      foundry report my-run
      foundry report runs/my-run --out my-run.html
    """
    from foundry_sdk.runs.listing import find_run
    from foundry_sdk.runs.report import write_report

    path = find_run(run, root=root)
    typer.echo(f"wrote {write_report(path, out or path / 'report.html')}")


def diff(
    first: Annotated[str, typer.Argument(help="A run's folder, or its name.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    root: _Root = _RUNS,
    as_json: _Json = False,
) -> None:
    """Compare two runs: spec, versions and data, last metrics, loss curves.

    Examples:
      foundry diff run-a run-b
      foundry diff run-a runs/run-b --json
    """
    from foundry_sdk.runs.diff import diff_runs, is_parameter_norm
    from foundry_sdk.runs.listing import find_run

    found = diff_runs(find_run(first, root=root), find_run(second, root=root))
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=2))
        return
    names = (found.first, found.second)
    _print_differences("spec", names, found.spec)
    _print_differences("versions, data, devices", names, found.environment)
    shown = [one for one in found.metrics if not is_parameter_norm(one.path)]
    _print_differences("last metrics", names, shown)
    if len(shown) < len(found.metrics):
        typer.echo(f"and {len(found.metrics) - len(shown)} norms by parameter (--json has them)")
    typer.echo(_loss_text(found.loss))


def _loss_text(loss: "LossDifference") -> str:
    if not loss.common_steps:
        return "training loss: no step is in both runs"
    if loss.first_step is None:
        return f"training loss: the same bits at all {loss.common_steps:,} common steps"
    return (
        f"training loss: differs from step {loss.first_step:,} on, by at most {loss.largest:.6g} "
        f"(step {loss.largest_step:,}); {loss.common_steps:,} common steps"
    )


def _print_differences(title: str, names: tuple[str, str], found: "Sequence[Difference]") -> None:
    if not found:
        typer.echo(f"{title}: no difference")
        return
    rows = [(one.path, _value(one.first), _value(one.second)) for one in found]
    _print_table((title, *names), rows)


def _value(value: Any) -> str:  # noqa: ANN401 - any plain value
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _print_table(columns: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, as a name in [brackets] is not markup.
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # A pipe has no width: nothing is wrapped, so that grep finds whole rows.
        console = Console(width=10_000)
    console.print(table)
