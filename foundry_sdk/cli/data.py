"""``foundry data convert``: text, JSON Lines and datasets to MDS shards."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from foundry_sdk.cli import data_check, data_finetuning, inspect
from foundry_sdk.cli.conversion_flags import Flags, OutRoot, TextColumn, TextFlags, with_flags


class ConvertCommand(TyperCommand):
    """A command that also reads ``--out_root`` for ``--out-root`` and ``--splits a b``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's click
        """Spread lists, and let names have dashes or underscores."""
        ctx.token_normalize_func = _dashes
        return super().parse_args(ctx, spread_values(args, "--splits"))


def _dashes(name: str) -> str:
    return name.replace("_", "-")


def spread_values(args: Sequence[str], option: str) -> list[str]:
    """Turn ``--splits a b,c`` into ``--splits a --splits b --splits c``."""
    spread: list[str] = []
    taking = False
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            taking = _dashes(name) == option
            words = [value] if taking and equals else []
            if not taking:
                spread.append(word)
        else:
            words = [word] if taking else []
            if not taking:
                spread.append(word)
        for item in ",".join(words).split(","):
            if item.strip():
                spread += [option, item.strip()]
    return spread


def register(app: typer.Typer) -> typer.Typer:
    """Add the group ``data`` to ``app`` and return it."""
    data = typer.Typer(name="data", help="Convert and inspect datasets.", no_args_is_help=True)
    convert = typer.Typer(
        name="convert", help="Make MDS shards of text or tokens.", no_args_is_help=True
    )
    convert.command("hf", cls=ConvertCommand)(with_flags(convert_hf))
    convert.command("json", cls=ConvertCommand)(with_flags(convert_json))
    convert.command("text", cls=ConvertCommand)(with_flags(convert_text))
    data_finetuning.register(convert)
    data.add_typer(convert)
    data_check.register(data)
    inspect.register(data)
    app.add_typer(data)
    return data


def convert_json(
    *,
    path: Annotated[
        str,
        typer.Option("--path", help="A .jsonl file, a folder of them, or a pattern with *."),
    ],
    out_root: OutRoot,
    split: Annotated[str, typer.Option("--split", help="Folder below the output root.")] = "train",
    text_column: TextColumn = "text",
    flags: Flags,
) -> None:
    """Convert JSON Lines, one object with a text a line.

    Examples:
      foundry data convert json --path docs.jsonl --out-root data --split train
      --concat-tokens 2048 --tokenizer EleutherAI/gpt-neox-20b --eos-text '<|endoftext|>'
    """
    from foundry_sdk.cli.conversion_progress import showing_progress
    from foundry_sdk.data import convert_json as function

    with showing_progress() as report:
        card = function(
            path=path,
            out_root=out_root,
            split=split,
            text_column=text_column,
            **flags.options(report),
        )
    typer.echo(card.summary(f"{out_root.rstrip('/')}/{split}"))


def convert_text(
    *,
    input_folder: Annotated[
        str, typer.Option("--input-folder", help="Every *.txt below it is a document.")
    ],
    output_folder: Annotated[
        str,
        typer.Option("--output-folder", "--out-root", help="Local folder, or s3://bucket/prefix."),
    ],
    use_tokenizer_eos: Annotated[
        bool, typer.Option("--use-tokenizer-eos", help="Take the tokenizer's own as eos text.")
    ] = False,
    flags: TextFlags,
) -> None:
    """Convert text files, each one document.

    Examples:
      foundry data convert text --input-folder books --output-folder data/books
      --concat-tokens 2048 --tokenizer EleutherAI/gpt-neox-20b --use-tokenizer-eos
    """
    from foundry_sdk.cli.conversion_progress import showing_progress
    from foundry_sdk.data import convert_text as function

    with showing_progress() as report:
        card = function(
            input_folder=input_folder,
            output_folder=output_folder,
            use_tokenizer_eos=use_tokenizer_eos,
            **flags.options(report),
        )
    typer.echo(card.summary(output_folder))


def convert_hf(
    *,
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name on the hub (c4, the_pile, ...), or a folder.")
    ],
    out_root: OutRoot,
    data_subset: Annotated[
        str | None, typer.Option("--data-subset", help="Configuration, such as en for c4.")
    ] = None,
    splits: Annotated[
        list[str] | None,
        typer.Option("--splits", help="Folders to write; several may follow.", metavar="NAME ..."),
    ] = None,
    hf_split: Annotated[
        str | None,
        typer.Option("--hf-split", help="The dataset's own name of the split, if another."),
    ] = None,
    text_column: TextColumn = "text",
    flags: Flags,
) -> None:
    """Convert a dataset of the hub, a folder per split.

    Examples:
      foundry data convert hf --dataset c4 --data-subset en --out-root my-copy-c4
      --splits train_small val_small --concat-tokens 2048
      --tokenizer EleutherAI/gpt-neox-20b --eos-text '<|endoftext|>'
    """
    from foundry_sdk.cli.conversion_progress import showing_progress
    from foundry_sdk.data import convert_hf as function

    with showing_progress() as report:
        cards = function(
            dataset=dataset,
            out_root=out_root,
            data_subset=data_subset,
            splits=splits or (),
            hf_split=hf_split,
            text_column=text_column,
            **flags.options(report),
        )
    for split, card in cards.items():
        typer.echo(card.summary(f"{out_root.rstrip('/')}/{split}"))
