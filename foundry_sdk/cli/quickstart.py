"""``foundry quickstart``: the whole way from text to a model that writes, on this machine."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from foundry_sdk.quickstart.run import Quickstart, SmallData
    from foundry_sdk.quickstart.sizes import Sizes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quickstart")(quickstart)


def quickstart(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less text and fewer steps: under a minute.")
    ] = False,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Only text, tokenizer and shards, to try things on.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for everything; must not exist, or be empty.")
    ] = Path("foundry-quickstart"),
) -> None:
    """Train a tokenizer and a small model on the source of Python's library, and let it write.

    Takes about two minutes on two CPU cores, needs no download and no account.
    Afterwards it shows what it did, and each step as a command for you to try.

    Examples:
      foundry quickstart
      foundry quickstart --quick --out /tmp/quickstart
    """
    from rich.console import Console

    from foundry_sdk.cli.narrator import ConsoleNarrator
    from foundry_sdk.quickstart import run as steps
    from foundry_sdk.quickstart.sizes import FULL, QUICK

    # Read when torch is loaded: threads that wait for each other give way instead of spinning,
    # without which a machine that is busy with something else slows the run down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console(soft_wrap=True, highlight=False)
    sizes = QUICK if quick else FULL
    if data_only:
        data = steps.small_data(
            out, sizes=sizes, tell=ConsoleNarrator(console, steps=steps.DATA_STEPS)
        )
        _show_places(console, _data_places(data))
        return
    tell = ConsoleNarrator(console, steps=steps.STEPS)
    _show(console, steps.quickstart(out, sizes=sizes, tell=tell), sizes)


def _show(console: "Console", result: "Quickstart", sizes: "Sizes") -> None:
    """Print the curve, what the model writes, where everything lies, and the commands."""
    from foundry_sdk.quickstart.run import BY_HAND, COMMANDS_FILE, SPEC_FILE, steps_by_hand
    from foundry_sdk.runs.record import LOSS_PLOT

    _show_curve(console, result)
    _head(console, "What the model writes")
    for prompt, text in result.samples:
        _say(console, f"--- {prompt!r}\n{prompt}{text}")
    run = result.run.run_dir
    _show_places(
        console,
        [
            (run / LOSS_PLOT, "the loss curve"),
            (run, "the run: its spec, metrics, checkpoints, and what was chosen for you"),
            (result.model, "the exported model; certificate.json says how it was compared"),
            *_data_places(result.data),
        ],
    )
    _head(console, "Each step by hand")
    by_hand = result.data.folder / BY_HAND
    _say(console, f"cd {shlex.quote(str(by_hand))}")
    programs = Path(sys.executable).parent
    if shutil.which("foundry") != str(programs / "foundry"):
        _say(console, f"export PATH={shlex.quote(str(programs))}:$PATH")
    for about, command in steps_by_hand(sizes):
        _say(console, f"# {about}\n{command}")
    _say(console, f"(or all of it: bash {shlex.quote(str(by_hand / COMMANDS_FILE))})")
    done = f"All of it took {result.seconds:.0f} s. To go on: change {SPEC_FILE} and train again."
    _head(console, done)


def _show_curve(console: "Console", result: "Quickstart") -> None:
    from foundry_sdk.loggers.jsonl import METRICS_FILE, read_metrics
    from foundry_sdk.quickstart.chart import text_chart
    from foundry_sdk.runs.plot import TRAIN_LOSS, curve

    _head(console, "Training loss, nats per token, over steps")
    steps, losses = curve(read_metrics(result.run.run_dir / METRICS_FILE), TRAIN_LOSS)
    _say(console, text_chart(steps, losses, width=min(60, max(20, len(steps) // 4))))
    for key, value in sorted(result.run.eval_metrics.items()):
        _say(console, f"{key}: {value:.4f}")


def _data_places(data: "SmallData") -> list[tuple[Path, str]]:
    from foundry_sdk.quickstart.run import BY_HAND, SPEC_FILE

    return [
        (data.folder / "text", "the text, a file per module"),
        (data.folder / "tokenizer", "the tokenizer"),
        (data.folder / "data", "shards of tokens, with a card that says what is in them"),
        (data.folder / BY_HAND, f"{SPEC_FILE} and all else for doing each step yourself"),
    ]


def _show_places(console: "Console", places: Sequence[tuple[Path, str]]) -> None:
    _head(console, "Where everything lies")
    width = max(len(str(path)) for path, _ in places)
    for path, about in places:
        _say(console, f"{path!s:<{width}}  {about}")


def _head(console: "Console", text: str) -> None:
    console.print(f"\n{text}", style="bold", markup=False)


def _say(console: "Console", text: str) -> None:
    console.print(text, markup=False)
