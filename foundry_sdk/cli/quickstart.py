"""``foundry quickstart``: the whole way from text to a model that writes, on this machine."""

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from foundry_sdk.quickstart.answers import Answer
    from foundry_sdk.quickstart.run import Finetuned, Quickstart, SmallData
    from foundry_sdk.quickstart.sizes import Sizes
    from foundry_sdk.training.run import RunResult

_LINES = 8
"""Of an answer that are shown."""


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
    """Pretrain and finetune a small model on the source of Python's library, and let it write.

    Takes about three minutes on two CPU cores, needs no download and no account.
    Afterwards it shows what it did, and each step as a command for you to try.
    Finetuning is on pairs of docstring and function, which the plugin
    foundry-sdk-code-instruct mines; without it, finetuning is skipped.

    Examples:
      foundry quickstart
      foundry quickstart --quick --out /tmp/quickstart
    """
    from rich.console import Console

    from foundry_sdk.cli.narrator import ConsoleNarrator
    from foundry_sdk.plugin.host import PluginHost
    from foundry_sdk.quickstart import run as steps
    from foundry_sdk.quickstart.pairs import missing_plugin
    from foundry_sdk.quickstart.sizes import FULL, QUICK

    # Read when torch is loaded: threads that wait for each other give way instead of spinning,
    # without which a machine that is busy with something else slows the run down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console(soft_wrap=True, highlight=False)
    sizes = QUICK if quick else FULL
    missing = missing_plugin(PluginHost.from_environment().catalog())
    finetune = missing is None
    if missing is not None:
        _skipped(console, missing)
    tell = ConsoleNarrator(console, steps=steps.step_count(finetune=finetune, data_only=data_only))
    if data_only:
        data = steps.small_data(out, sizes=sizes, tell=tell, finetune=finetune)
        _show_places(console, _data_places(data))
    else:
        show(console, steps.quickstart(out, sizes=sizes, tell=tell, finetune=finetune), sizes)
    if missing is not None:
        _skipped(console, missing)


def _skipped(console: "Console", missing: str) -> None:
    console.print(f"\nFinetuning is skipped: {missing}", style="yellow", markup=False)


def show(console: "Console", result: "Quickstart", sizes: "Sizes") -> None:
    """Print curves, what the models write, where everything lies, and the commands."""
    from foundry_sdk.quickstart.by_hand import (
        BY_HAND,
        COMMANDS_FILE,
        FINETUNE_FILE,
        PRETRAIN_FILE,
        steps_by_hand,
    )

    finetuned = result.finetuned
    _show_curve(console, "Pretraining", result.run)
    _head(console, "What the pretrained model writes")
    for prompt, text in result.samples:
        _say(console, f"--- {prompt!r}\n{prompt}{text}")
    if finetuned is not None:
        _show_curve(console, "Finetuning", finetuned.run)
        _show_answers(console, finetuned)
    _show_places(console, [*_run_places(result), *_data_places(result.data)])
    _head(console, "Each step by hand")
    by_hand = result.data.folder / BY_HAND
    _say(console, f"cd {shlex.quote(str(by_hand))}")
    programs = Path(sys.executable).parent
    if shutil.which("foundry") != str(programs / "foundry"):
        _say(console, f"export PATH={shlex.quote(str(programs))}:$PATH")
    for about, command in steps_by_hand(sizes, finetune=finetuned is not None):
        _say(console, f"# {about}\n{command}")
    _say(console, f"(or all of it: bash {shlex.quote(str(by_hand / COMMANDS_FILE))})")
    files = PRETRAIN_FILE if finetuned is None else f"{PRETRAIN_FILE} or {FINETUNE_FILE}"
    done = f"All of it took {result.seconds:.0f} s. To go on: change {files} and train again."
    _head(console, done)


def _show_curve(console: "Console", title: str, run: "RunResult") -> None:
    from foundry_sdk.loggers.jsonl import METRICS_FILE, read_metrics
    from foundry_sdk.quickstart.chart import text_chart
    from foundry_sdk.runs.plot import TRAIN_LOSS, curve

    _head(console, f"{title}: training loss, nats per token, over steps")
    steps, losses = curve(read_metrics(run.run_dir / METRICS_FILE), TRAIN_LOSS)
    _say(console, text_chart(steps, losses, width=min(60, max(20, len(steps) // 4))))
    for key, value in sorted(run.eval_metrics.items()):
        _say(console, f"{key}: {value:.4f}")


def _show_answers(console: "Console", finetuned: "Finetuned") -> None:
    """Print what finetuning changed, all of it about pairs that were held out."""
    from foundry_sdk.quickstart.answers import SHOWN, is_function

    answers = finetuned.answers
    _head(console, "What finetuning changed, on docstrings that no model was trained on")
    _say(
        console,
        f"loss of the functions that belong to them, nats per token: "
        f"{finetuned.loss_before:.3f} before, {finetuned.loss_after:.3f} after",
    )
    before = sum(is_function(answer.before) for answer in answers)
    after = sum(is_function(answer.after) for answer in answers)
    _say(
        console,
        f"answers that are one whole Python function, of {len(answers)}: "
        f"{before} before, {after} after",
    )
    for answer in answers[:SHOWN]:
        _show_answer(console, answer)


def _show_answer(console: "Console", answer: "Answer") -> None:
    _say(console, f"\n--- {answer.prompt!r}")
    for title, text in (
        ("before finetuning", answer.before),
        ("after", answer.after),
        ("in the library", answer.original),
    ):
        lines = text.strip("\n").splitlines()
        shown = [*lines[:_LINES], "..."] if len(lines) > _LINES else lines
        _say(console, f"{title}:\n{textwrap.indent(chr(10).join(shown), '    ')}")


def _run_places(result: "Quickstart") -> list[tuple[Path, str]]:
    from foundry_sdk.runs.record import LOSS_PLOT

    run, finetuned = result.run.run_dir, result.finetuned
    places = [
        (run / LOSS_PLOT, "the loss curve of pretraining"),
        (run, "the run: its spec, metrics, checkpoints, and what was chosen for you"),
        (result.model, "the exported model; certificate.json says how it was compared"),
    ]
    if finetuned is not None:
        run = finetuned.run.run_dir
        places += [
            (run / LOSS_PLOT, "the loss curve of finetuning"),
            (run, "that run; its checkpoint is the finetuned model"),
        ]
    return places


def _data_places(data: "SmallData") -> list[tuple[Path, str]]:
    from foundry_sdk.quickstart.by_hand import BY_HAND, FINETUNE_FILE, PRETRAIN_FILE

    places = [
        (data.folder / "text", "the text, a file per module"),
        (data.folder / "tokenizer", "the tokenizer"),
        (data.folder / "data", "shards of tokens, with a card that says what is in them"),
    ]
    files = PRETRAIN_FILE
    if data.pairs is not None:
        places.append((data.folder / "pairs", "pairs of docstring and function, JSON Lines"))
        files = f"{PRETRAIN_FILE}, {FINETUNE_FILE}"
    return [*places, (data.folder / BY_HAND, f"{files} and all else for doing each step yourself")]


def _show_places(console: "Console", places: Sequence[tuple[Path, str]]) -> None:
    _head(console, "Where everything lies")
    width = max(len(str(path)) for path, _ in places)
    for path, about in places:
        _say(console, f"{path!s:<{width}}  {about}")


def _head(console: "Console", text: str) -> None:
    console.print(f"\n{text}", style="bold", markup=False)


def _say(console: "Console", text: str) -> None:
    console.print(text, markup=False)
