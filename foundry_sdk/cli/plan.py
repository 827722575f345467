"""``foundry plan``: the arithmetic of a run, before anything is built."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    spec: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, as a.b.c=value.", show_default=False)
    ] = None,
    devices: Annotated[int, typer.Option("--devices", "-n", min=1, help="Ranks to plan for.")] = 1,
) -> None:
    """Show batch sizes, steps, tokens and memory of a run without building anything.

    Example: foundry plan pretrain.yaml --devices 8 global_train_batch_size=512
    """
    from rich.console import Console
    from rich.table import Table

    from foundry_sdk.finetuner import trainer_from_yaml

    run = trainer_from_yaml(spec, overrides or []).plan(world_size=devices)
    batch = run.batch
    rows = [
        ("sequences per step (global batch)", f"{batch.global_batch:,}"),
        ("ranks", f"{batch.world_size:,}"),
        ("sequences per rank and step", f"{batch.device_batch:,}"),
        ("sequences per forward (microbatch)", f"{batch.microbatch:,}"),
        ("forwards per rank and step", f"{batch.microbatches:,}"),
        ("tokens per step", f"{run.tokens_per_step:,}"),
        ("steps", _number(run.total_steps, "as the data says")),
        ("tokens of the run", _number(run.total_tokens, "as the data says")),
        ("parameters", _number(run.parameters, "known when built")),
        ("parameters, gradients, optimizer per rank", _gigabytes(run.state_bytes_per_rank)),
        ("FLOPs per token", _number(run.flops_per_token, "not known")),
    ]
    if run.flops_per_token and run.total_tokens:
        rows.append(("FLOPs of the run", f"{run.flops_per_token * run.total_tokens:.3e}"))
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def _number(value: int | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:,}"


def _gigabytes(value: int | None) -> str:
    return "known when built" if value is None else f"{value / 1e9:.2f} GB"
