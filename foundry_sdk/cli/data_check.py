"""``foundry data check``: what a finetuning run would learn from, before it starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foundry_sdk.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from foundry_sdk.data.finetuning.preflight import LoaderReport
    from foundry_sdk.specs.run import FinetuneSpec


def register(data: typer.Typer) -> None:
    """Add the command to the group ``data``."""
    data.command("check")(check)


def check(
    spec: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Such as max_seq_len=512.", show_default=False),
    ] = None,
    *,
    samples: Annotated[
        int, typer.Option("--samples", "-s", min=0, help="Examples to show of each loader.")
    ] = 2,
) -> None:
    """Tokenize a finetuning run's data, and show what would be learned from it.

    Examples left out and why, what share of the tokens is learned, the longest
    examples, what is cut, how full packed rows are, whether examples of a packed
    row see each other, what is in both training and evaluation, and some examples
    with what is learned in colour. What is tokenized is kept: the run does not do
    it again.

    Examples:
      foundry data check finetune.yaml
      foundry data check finetune.yaml max_seq_len=512 --samples 5
    """
    from rich.console import Console

    from foundry_sdk.data.finetuning.preflight import shared_examples
    from foundry_sdk.specs.run import FinetuneSpec
    from foundry_sdk.specs.structure import read, spec_class

    if spec_class(spec, overrides or ()) is not FinetuneSpec:
        raise SpecError(
            f"{spec}: train_loader is not finetuning; foundry data inspect looks at shards of "
            "tokens and text"
        )
    run, _ = read(spec, FinetuneSpec, overrides or ())
    reports = _reports(run, samples)
    console = Console(highlight=False, soft_wrap=True, emoji=False, markup=False)
    for report in reports:
        _show(console, report)
    train, *evaluations = reports
    _look_at_packing(console, run, train)
    for evaluation in evaluations:
        both = shared_examples(train, evaluation)
        total = len(evaluation.fingerprints)
        line = f"{both} of {total} examples of {evaluation.label} are in train_loader too"
        console.print(f"warning: {line}" if both else line)


def _reports(run: "FinetuneSpec", samples: int) -> "list[LoaderReport]":
    import attrs

    from foundry_sdk.data.contract import LoaderContext
    from foundry_sdk.data.finetuning.preflight import inspect_loader
    from foundry_sdk.data.finetuning.spec import FinetuningDataSpec
    from foundry_sdk.data.tokenizer import load_tokenizer

    loaders = {"train_loader": run.train_loader}
    for entry in run.eval_loader:
        label = "eval_loader" if entry.label is None else f"eval_loader {entry.label!r}"
        loaders[label] = entry.loader
    context = LoaderContext(
        tokenizer=load_tokenizer(run.tokenizer),
        rank=0,
        world_size=1,
        device_batch=run.global_train_batch_size,
        max_seq_len=run.max_seq_len,
        seed=run.seed,
        training=True,
    )
    reports = []
    for label, loader in loaders.items():
        if not isinstance(loader, FinetuningDataSpec):
            continue
        own = attrs.evolve(
            context,
            encoder_decoder=loader.dataset.decoder_only_format is False,
            training=label == "train_loader",
        )
        reports.append(inspect_loader(label, loader, own, samples=samples))
    return reports


def _show(console: "Console", report: "LoaderReport") -> None:
    from rich.text import Text

    console.print(f"{report.label}: {report.batches:,} batches an epoch", style="bold")
    for source in report.sources:
        console.print(f"  {source.name}: {source.kept:,} of {source.examples:,} examples are kept")
        for reason, count in source.dropped.items():
            if count:
                console.print(f"    {count:,} ({count / source.examples:.1%}) left out: {reason}")
        share = source.targets / source.tokens if source.tokens else 0.0
        console.print(f"    {source.tokens:,} tokens, of which {share:.1%} are learned")
        fewest, median, most = source.learned_of_each
        console.print(
            f"    learned of an example: {fewest:,} to {most:,} tokens, median {median:g}"
        )
        console.print(f"    {source.ending:,} examples learn to end (end-of-sequence is a target)")
        longest = ", ".join(f"{number} ({tokens:,} tokens)" for number, tokens in source.longest)
        console.print(f"    longest examples: {longest}")
    if report.efficiency is not None and report.waste is not None:
        console.print(
            f"  packing: {report.ratio:.1f} examples a row, rows are {report.efficiency:.1%} full, "
            f"{report.waste:.2%} of the tokens are in no row"
        )
    for source in report.sources:
        for warning in source.warnings():
            console.print(f"warning: {warning}", style="yellow")
    for number, sample in enumerate(report.samples):
        console.print(f"  sample {number}, what is learned in green and ⟦brackets⟧:")
        text = Text()
        for piece in sample:
            learned = f"⟦{piece.text}⟧" if piece.learned else piece.text
            text.append(learned, style="green" if piece.learned else "")
        console.print(text)


def _look_at_packing(console: "Console", run: "FinetuneSpec", report: "LoaderReport") -> None:
    from foundry_sdk.training.isolation import look_at_model

    if report.packed is None:
        return
    found = look_at_model(run.model, report.packed, seed=run.seed)
    if isinstance(found, str):
        console.print(
            f"warning: packing is not looked at: {found}, before its first step", style="yellow"
        )
        return
    console.print(
        f"packing: PASS, no example sees another. Changing every second of {found.examples} "
        f"examples of a row moves their own logits by up to {found.own:.2g}, those of the others "
        f"by {found.others:.2g}; each begins at position 0, and alone in a row its logits are the "
        f"same within {found.alone:.1g} ({found.about})"
    )
