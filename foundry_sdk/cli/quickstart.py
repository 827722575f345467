"""``foundry quickstart``: the whole way from text to a model that writes, on this machine."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from foundry_sdk.quickstart.run import Narrator, Quickstart
    from foundry_sdk.quickstart.sizes import Sizes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quickstart")(quickstart)


def quickstart(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less text and fewer steps: under a minute.")
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

    from foundry_sdk.quickstart.run import quickstart as run
    from foundry_sdk.quickstart.sizes import FULL, QUICK

    console = Console(soft_wrap=True, highlight=False)
    sizes = QUICK if quick else FULL
    result = run(out, sizes=sizes, tell=_narrator(console))
    _show(console, result, sizes)


def _narrator(console: "Console") -> "Narrator":
    from foundry_sdk.cli.narrator import ConsoleNarrator
    from foundry_sdk.quickstart.run import STEPS

    return ConsoleNarrator(console, steps=STEPS)


def _show(console: "Console", result: "Quickstart", sizes: "Sizes") -> None:
    """Print the curve, what the model writes, where everything lies, and the commands."""
    from foundry_sdk.loggers.jsonl import METRICS_FILE, read_metrics
    from foundry_sdk.quickstart.chart import text_chart
    from foundry_sdk.quickstart.run import BY_HAND, COMMANDS_FILE, SPEC_FILE, steps_by_hand
    from foundry_sdk.runs.plot import TRAIN_LOSS, curve
    from foundry_sdk.runs.record import LOSS_PLOT

    def say(text: str = "") -> None:
        console.print(text, markup=False)

    def head(text: str) -> None:
        console.print(f"\n{text}", style="bold", markup=False)

    steps, losses = curve(read_metrics(result.run.run_dir / METRICS_FILE), TRAIN_LOSS)
    head("Training loss, nats per token, over steps")
    say(text_chart(steps, losses, width=min(60, max(20, len(steps) // 4))))
    for key, value in sorted(result.run.eval_metrics.items()):
        say(f"{key}: {value:.4f}")

    head("What the model writes")
    for prompt, text in result.samples:
        say(f"--- {prompt!r}\n{prompt}{text}")

    head("Where everything lies")
    run = result.run.run_dir
    places = [
        (run / LOSS_PLOT, "the loss curve"),
        (run, "the run: spec, metrics, checkpoints, report of what was chosen"),
        (result.folder / "text", "the text, a file per module"),
        (result.folder / "tokenizer", "the tokenizer"),
        (result.folder / "data", "shards of tokens, with a card that says what is in them"),
        (result.model, "the exported model; certificate.json says how it was compared"),
        (result.folder / BY_HAND, f"{SPEC_FILE} and all else for doing each step yourself"),
    ]
    width = max(len(str(path)) for path, _ in places)
    for path, about in places:
        say(f"{path!s:<{width}}  {about}")

    head("Each step by hand")
    by_hand = result.folder / BY_HAND
    say(f"cd {shlex.quote(str(by_hand))}")
    for about, command in steps_by_hand(sizes):
        say(f"# {about}\n{command}")
    say(f"(or all of it: bash {shlex.quote(str(by_hand / COMMANDS_FILE))})")
    head(f"All of it took {result.seconds:.0f} s. To go on: change {SPEC_FILE} and train again.")
