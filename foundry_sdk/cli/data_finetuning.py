"""``foundry data convert finetuning``: examples to MDS shards."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from foundry_sdk.cli.conversion_flags import json_object
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from foundry_sdk.data.contract import PreprocessorSpec


class SplitsCommand(TyperCommand):
    """A command that also reads ``--out_root``, ``--splits a b`` and ``--data-files a b``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's click
        """Spread lists, and let names have dashes or underscores."""
        from foundry_sdk.cli.data import spread_values

        ctx.token_normalize_func = lambda name: name.replace("_", "-")
        spread = spread_values(spread_values(args, "--splits"), "--data-files")
        return super().parse_args(ctx, spread)


def register(convert: typer.Typer) -> None:
    """Add the command to the group ``convert``."""
    convert.command("finetuning", cls=SplitsCommand)(convert_finetuning)


def convert_finetuning(
    *,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="Name on the hub, a folder, a file, a URI of one, or json, csv, parquet with "
            "--data-files.",
        ),
    ],
    out_root: Annotated[
        str, typer.Option("--out-root", help="Local folder, or s3://bucket/prefix.", metavar="PATH")
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--splits",
            help="Default: train of a file, else train and validation.",
            metavar="NAME ...",
            show_default=False,
        ),
    ] = None,
    data_subset: Annotated[
        str | None, typer.Option("--data-subset", help="Configuration of the dataset.")
    ] = None,
    data_files: Annotated[
        list[str] | None,
        typer.Option("--data-files", help="One file per split.", metavar="FILE ..."),
    ] = None,
    preprocessor: Annotated[
        str | None,
        typer.Option(
            "--preprocessor",
            help="Name, or module:function. Default: the one that is named as the dataset.",
        ),
    ] = None,
    skip_preprocessing: Annotated[
        bool, typer.Option("--skip-preprocessing", help="Rows are examples already.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Write ids of this tokenizer, not text.")
    ] = None,
    tokenizer_kwargs: Annotated[
        str, typer.Option("--tokenizer-kwargs", help="JSON object for it.", metavar="JSON")
    ] = "{}",
    max_seq_len: Annotated[
        int, typer.Option("--max-seq-len", help="With a tokenizer: of the run.", min=1)
    ] = 2048,
    target_prompts: Annotated[
        str, typer.Option("--target-prompts", help="none, all or length>=N.")
    ] = "none",
    target_responses: Annotated[
        str, typer.Option("--target-responses", help="last or all.")
    ] = "last",
    encoder_decoder: Annotated[
        bool, typer.Option("--encoder-decoder", help="For T5 and its relatives.")
    ] = False,
    local: Annotated[
        str | None,
        typer.Option("--local", help="Keep a copy of what goes to a bucket here.", metavar="PATH"),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            help="No effect: the tokenizer's own threads use all cores.",
            min=0,
        ),
    ] = None,
    compression: Annotated[
        str, typer.Option("--compression", help="zstd, zstd:7, gz, bz2, br, snappy or none.")
    ] = "none",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep splits that are finished.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there, once the new is whole.")
    ] = False,
) -> None:
    """Convert prompts and responses, or chats, a folder per split.

    Examples:
      foundry data convert finetuning --dataset mosaicml/dolly_hhrlhf
      --splits train test --skip-preprocessing --out-root dolly
      foundry data convert finetuning --dataset json --data-files train.jsonl
      --splits train --preprocessor my_data:to_example --out-root my-data
      foundry data convert finetuning --dataset train.jsonl --skip-preprocessing
      --out-root s3://bucket/my-data --local my-data
    """
    from foundry_sdk.cli.conversion_progress import showing_progress
    from foundry_sdk.data import convert_finetuning as function

    found = _preprocessor(preprocessor, dataset, skip=skip_preprocessing)
    kwargs = json_object(tokenizer_kwargs)
    if num_workers is not None:
        typer.echo(
            "--num-workers: accepted without effect: the tokenizer's own threads use all cores "
            "(RAYON_NUM_THREADS)",
            err=True,
        )
    with showing_progress() as report:
        cards = function(
            dataset=dataset,
            out_root=out_root,
            splits=splits or None,
            local=local,
            data_subset=data_subset,
            data_files=data_files or (),
            preprocessor=found,
            tokenizer=tokenizer,
            tokenizer_kwargs=kwargs,
            max_seq_len=max_seq_len,
            target_prompts=target_prompts,
            target_responses=target_responses,
            encoder_decoder=encoder_decoder,
            compression=None if compression == "none" else compression,
            resume=resume,
            overwrite=overwrite,
            report=report,
        )
    for split, card in cards.items():
        typer.echo(card.summary(f"{out_root.rstrip('/')}/{split}"))


def _preprocessor(name: str | None, dataset: str, *, skip: bool) -> "str | PreprocessorSpec | None":
    """Return the import path, the component, or None where rows are examples already.

    Raises:
        DataError: none is known for the dataset, and nobody said that it needs none.
    """
    from foundry_sdk.data.contract import PreprocessorSpec
    from foundry_sdk.data.preprocess import is_import_path
    from foundry_sdk.plugin.host import PluginHost

    if skip:
        if name is not None:
            raise DataError("either --preprocessor or --skip-preprocessing")
        return None
    if name is not None and is_import_path(name):
        return name
    catalog = PluginHost.from_environment().catalog()
    if name is None and dataset not in catalog.kinds(PreprocessorSpec):
        raise DataError(
            f"--preprocessor: none is known for {dataset!r}; name one (foundry plugins lists "
            "them, module:function works too), or give --skip-preprocessing where each row has "
            "prompt and response, or messages, already"
        )
    return catalog.find(PreprocessorSpec, name or dataset)()
