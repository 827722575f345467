"""``foundry data inspect``: what a folder of MDS shards holds."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from foundry_sdk.data.inspection import Inspection, Statistics

_BAR = 40
_TEXT = 400


class InspectCommand(TyperCommand):
    """A command that also reads ``--local_path`` for ``--local-path``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's click
        """Let names have dashes or underscores."""
        ctx.token_normalize_func = lambda name: name.replace("_", "-")
        return super().parse_args(ctx, args)


def register(data: typer.Typer) -> None:
    """Add the command to ``foundry data``."""
    data.command("inspect", cls=InspectCommand)(inspect)


def inspect(
    *,
    path: Annotated[str | None, typer.Argument(help="Folder of the shards.")] = None,
    local: Annotated[
        str | None,
        typer.Option("--local", "--local-path", help="The same; with --remote: where to fetch to."),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option("--remote", "--remote-path", help="Folder or URL to fetch shards from."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Folder below, as train.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder or hub name; decodes samples.")
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option("--max-seq-len", min=1, help="Cut rows to this many ids.")
    ] = None,
    batches: Annotated[int, typer.Option("--batches", min=0, help="Batches to show.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples of each.")] = 2,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Samples of the statistics; 0 = all.")
    ] = 1000,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every shard with its digest.")
    ] = False,
) -> None:
    """Show what a folder of MDS shards holds, read as a training run reads it.

    Damaged or missing files are listed with --verify, and the exit code is 2.

    Examples:
      foundry data inspect my-data --split train --tokenizer gpt2
      foundry data inspect --remote s3://bucket/data --local /tmp/data --split val
      foundry data inspect my-data/train --verify --batches 0
    """
    from foundry_sdk.data.contract import TokenizerSpec
    from foundry_sdk.data.inspection import inspect_data
    from foundry_sdk.data.tokenizer import load_tokenizer

    if path is not None and local is not None:
        raise DataError(f"both PATH ({path}) and --local ({local}) are given; leave one out")
    local = local or path
    if local is None and remote is None:
        raise DataError("nothing to inspect; give the folder of the shards, or --remote")
    loaded = None if tokenizer is None else load_tokenizer(TokenizerSpec(name=tokenizer))
    found = inspect_data(
        local=local,
        remote=remote,
        split=split,
        tokenizer=loaded,
        max_seq_len=max_seq_len,
        batches=batches,
        batch_size=batch_size,
        samples=samples,
        verify=verify,
    )
    _print_summary(found)
    _print_batches(found)
    _print_statistics(found.statistics)


def _print_summary(found: "Inspection") -> None:
    typer.echo(f"{found.folder}")
    columns = ", ".join(f"{name} ({kind})" for name, kind in found.index.columns.items())
    typer.echo(f"  columns     {columns}")
    typer.echo(f"  samples     {found.index.samples:,}")
    typer.echo(f"  shards      {len(found.index.shards):,} ({found.stored_bytes:,} bytes)")
    card = found.card
    if card is not None:
        facts = {
            "documents": card.documents,
            "tokens": card.tokens,
            "row length": card.sequence_length,
        }
        for name, value in facts.items():
            if value is not None:
                typer.echo(f"  {name:<11} {value:,}")
        if card.tokenizer is not None:
            typer.echo(f"  tokenizer   {card.tokenizer} (sha256 {card.tokenizer_sha256})")
    if found.verified:
        typer.echo(f"  verified    {found.verified:,} files are as their digests say")
    elif found.verified is not None:
        typer.echo("  verified    sizes only: neither index nor card has digests")
    for notice in found.notices:
        typer.echo(f"notice: {notice}", err=True)


def _print_batches(found: "Inspection") -> None:
    for number, batch in enumerate(found.batches):
        typer.echo(f"\nbatch {number}")
        for part in batch.parts:
            typer.echo(f"  {part.name:<15} {part.shape!s:<14} {part.dtype}")
        for sample, text in batch.samples:
            shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}... ({len(text):,} characters)"
            typer.echo(f"  --- sample {sample} ---")
            typer.echo("\n".join(f"  {line}" for line in shown.splitlines()))


def _print_statistics(numbers: "Statistics") -> None:
    if not numbers.samples:
        return
    typer.echo(f"\nstatistics of the first {numbers.samples:,} samples")
    if numbers.characters is not None:
        typer.echo(f"  characters  {numbers.characters:,}")
    if numbers.tokens is not None:
        typer.echo(f"  tokens      {numbers.tokens:,}, the highest id is {numbers.largest_id:,}")
    if numbers.characters and numbers.tokens:
        typer.echo(f"  per token   {numbers.characters / numbers.tokens:.2f} characters")
    if numbers.eos_tokens is not None and numbers.characters is None:
        share = f"{numbers.eos_share or 0:.4%} of the tokens"
        typer.echo(f"  documents   {numbers.eos_tokens:,} end here ({share} are end-of-sequence)")
    unit = "ids" if numbers.characters is None else "characters"
    most = max((count for _, _, count in numbers.histogram), default=0)
    for start, end, count in numbers.histogram:
        bar = "#" * -(-count * _BAR // most)
        typer.echo(f"  {start:>9,} to {end - 1:>9,} {unit:<10} {count:>9,} {bar}")
