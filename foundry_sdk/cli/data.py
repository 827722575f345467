"""``foundry data convert``: text, JSON Lines and datasets to MDS shards."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from foundry_sdk.cli import data_check, data_finetuning, inspect
from foundry_sdk.errors import DataError

Errors = Literal["strict", "replace", "skip"]


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


OutRoot = Annotated[
    str, typer.Option("--out-root", help="Local folder, or s3://bucket/prefix.", metavar="PATH")
]
ConcatTokens = Annotated[
    int | None,
    typer.Option("--concat-tokens", help="Token ids a row. Without: a document a row, as text."),
]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder, or name on the hub.", metavar="NAME")
]
TokenizerKwargs = Annotated[
    str, typer.Option("--tokenizer-kwargs", help="JSON object for the tokenizer.", metavar="JSON")
]
BosText = Annotated[str, typer.Option("--bos-text", help="Put before each document.")]
EosText = Annotated[str, typer.Option("--eos-text", help="Put after each document.")]
NoWrap = Annotated[
    bool,
    typer.Option("--no-wrap", help="Throw away the rest of a document that fills a row."),
]
Compression = Annotated[
    str,
    typer.Option("--compression", help="zstd, zstd:7, gz, bz2, br, snappy or none."),
]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Where a row has its document.", metavar="NAME")
]
MaxSamples = Annotated[
    int | None, typer.Option("--max-samples", help="Write at most this many rows.")
]
OnErrors = Annotated[
    Errors, typer.Option("--errors", help="What becomes of bytes that are not UTF-8.")
]
Workers = Annotated[
    int | None,
    typer.Option("--num-workers", "--processes", help="Tokenizing processes. Default: all cores."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the same conversion where it stopped.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there, once the new data is whole.")
]


def register(app: typer.Typer) -> typer.Typer:
    """Add the group ``data`` to ``app`` and return it."""
    data = typer.Typer(name="data", help="Convert and inspect datasets.", no_args_is_help=True)
    convert = typer.Typer(
        name="convert", help="Make MDS shards of text or tokens.", no_args_is_help=True
    )
    convert.command("hf", cls=ConvertCommand)(convert_hf)
    convert.command("json", cls=ConvertCommand)(convert_json)
    convert.command("text", cls=ConvertCommand)(convert_text)
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
    concat_tokens: ConcatTokens = None,
    tokenizer: Tokenizer = None,
    tokenizer_kwargs: TokenizerKwargs = "{}",
    bos_text: BosText = "",
    eos_text: EosText = "",
    no_wrap: NoWrap = False,
    compression: Compression = "none",
    text_column: TextColumn = "text",
    max_samples: MaxSamples = None,
    errors: OnErrors = "strict",
    num_workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
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
            concat_tokens=concat_tokens,
            tokenizer=tokenizer,
            tokenizer_kwargs=_json_object(tokenizer_kwargs),
            bos_text=bos_text,
            eos_text=eos_text,
            no_wrap=no_wrap,
            compression=_compression(compression),
            text_column=text_column,
            max_samples=max_samples,
            errors=errors,
            num_workers=num_workers,
            resume=resume,
            overwrite=overwrite,
            report=report,
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
    concat_tokens: ConcatTokens = None,
    tokenizer: Tokenizer = None,
    tokenizer_kwargs: TokenizerKwargs = "{}",
    bos_text: BosText = "",
    eos_text: EosText = "",
    use_tokenizer_eos: Annotated[
        bool, typer.Option("--use-tokenizer-eos", help="Take the tokenizer's own as eos text.")
    ] = False,
    no_wrap: NoWrap = False,
    compression: Compression = "zstd",
    max_samples: MaxSamples = None,
    errors: OnErrors = "strict",
    num_workers: Workers = None,
    resume: Resume = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", "--reprocess", help="Replace what is there, once the new data is whole."
        ),
    ] = False,
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
            concat_tokens=concat_tokens,
            tokenizer=tokenizer,
            tokenizer_kwargs=_json_object(tokenizer_kwargs),
            bos_text=bos_text,
            eos_text=eos_text,
            use_tokenizer_eos=use_tokenizer_eos,
            no_wrap=no_wrap,
            compression=_compression(compression),
            max_samples=max_samples,
            errors=errors,
            num_workers=num_workers,
            resume=resume,
            overwrite=overwrite,
            report=report,
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
    concat_tokens: ConcatTokens = None,
    tokenizer: Tokenizer = None,
    tokenizer_kwargs: TokenizerKwargs = "{}",
    bos_text: BosText = "",
    eos_text: EosText = "",
    no_wrap: NoWrap = False,
    compression: Compression = "none",
    text_column: TextColumn = "text",
    max_samples: MaxSamples = None,
    errors: OnErrors = "strict",
    num_workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
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
            concat_tokens=concat_tokens,
            tokenizer=tokenizer,
            tokenizer_kwargs=_json_object(tokenizer_kwargs),
            bos_text=bos_text,
            eos_text=eos_text,
            no_wrap=no_wrap,
            compression=_compression(compression),
            text_column=text_column,
            max_samples=max_samples,
            errors=errors,
            num_workers=num_workers,
            resume=resume,
            overwrite=overwrite,
            report=report,
        )
    for split, card in cards.items():
        typer.echo(card.summary(f"{out_root.rstrip('/')}/{split}"))


def _compression(value: str) -> str | None:
    return None if value in {"none", ""} else value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"--tokenizer-kwargs: not JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise DataError(f"--tokenizer-kwargs: expected a JSON object such as {{}}, got {text!r}")
    return value
