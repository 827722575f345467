"""Conversions as functions, with the names and defaults of ``foundry data convert``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import attrs

from foundry_sdk.data.card import DataCard
from foundry_sdk.data.convert.destination import destination
from foundry_sdk.data.convert.hub import ALIASES, HubRows, pinned_revision, plan_splits
from foundry_sdk.data.convert.jsonlines import JsonLines, find_files
from foundry_sdk.data.convert.options import ConversionOptions, job_of, recipe_of
from foundry_sdk.data.convert.textfiles import TextFiles, find_text_files
from foundry_sdk.errors import DataError


def convert_json(
    *,
    path: str | Path,
    out_root: str | Path,
    split: str = "train",
    text_column: str = "text",
    **options: Unpack[ConversionOptions],
) -> DataCard:
    """Convert JSON Lines to MDS shards in ``out_root/split``.

    Args:
        path: a file (``.jsonl``, ``.json`` with an object a line, either ``.gz``), a folder of
            them, or a pattern with ``*``; several are read in sorted order.
        out_root: local folder, or ``s3://bucket/prefix``.
        split: name of the folder below ``out_root``.
        text_column: key of the document in each row.
        **options: see ``ConversionOptions``.

    Returns:
        The card that lies beside the index.

    Raises:
        DataError: bad input or options, or ``out_root/split`` is not free.
        RunError: a worker process died, or a file could not be uploaded; ``resume`` goes on.
    """
    recipe = recipe_of(options, text_column=text_column)
    source = JsonLines(paths=find_files(path), column=text_column, errors=recipe.errors)
    return destination(out_root, split).convert(source, recipe, split=split, job=job_of(options))


def convert_text(
    *,
    input_folder: str | Path,
    output_folder: str | Path,
    use_tokenizer_eos: bool = False,
    **options: Unpack[ConversionOptions],
) -> DataCard:
    """Convert every ``*.txt`` below ``input_folder``, each a document, in sorted order.

    The shards lie in ``output_folder`` itself, compressed with zstd where ``compression`` says
    nothing else. Line ends stay as they are; a byte order mark at the beginning of a file is left
    out.

    Args:
        input_folder: folder, searched to any depth, or a single file.
        output_folder: local folder, or ``s3://bucket/prefix``.
        use_tokenizer_eos: take the tokenizer's own end-of-sequence token as ``eos_text``.
        **options: see ``ConversionOptions``.

    Returns:
        The card that lies beside the index.

    Raises:
        DataError: see ``convert_json``.
        RunError: see ``convert_json``.
    """
    eos_text = options.get("eos_text", "")
    if use_tokenizer_eos and eos_text:
        raise DataError(f"use_tokenizer_eos with eos_text {eos_text!r}; give one of them")
    options.setdefault("compression", "zstd")
    recipe = recipe_of(options)
    if use_tokenizer_eos:
        recipe = recipe.with_own_eos()
    source = TextFiles(paths=find_text_files(input_folder), errors=recipe.errors)
    return destination(output_folder, "").convert(source, recipe, split="", job=job_of(options))


def convert_hf(
    *,
    dataset: str,
    out_root: str | Path,
    data_subset: str | None = None,
    splits: Sequence[str] = (),
    hf_split: str | None = None,
    text_column: str = "text",
    **options: Unpack[ConversionOptions],
) -> dict[str, DataCard]:
    """Convert a dataset of the hub, or a folder that ``datasets`` reads; a folder per split.

    Args:
        dataset: name on the hub; ``c4`` (allenai/c4) and ``the_pile`` have named splits with cuts:
            train, train_small, val, val_small, val_xsmall (c4 also val_xxsmall).
        out_root: local folder, or ``s3://bucket/prefix``.
        data_subset: configuration, such as "en" for c4.
        splits: folders to write. Empty = all named ones but val_xxsmall, or "train" for a dataset
            without named splits.
        hf_split: the dataset's own name of the one split that is written.
        text_column: column of the document in each row.
        **options: see ``ConversionOptions``.

    Returns:
        The card of each split.

    Raises:
        DataError: see ``convert_json``; or the hub has no such dataset, or can't be reached.
        RunError: see ``convert_json``.
    """
    dataset = ALIASES.get(dataset, dataset)
    limit = options.get("max_samples")
    planned = plan_splits(dataset, splits, hf_split=hf_split, max_samples=limit)
    recipe = recipe_of(options, text_column=text_column)
    job = job_of(options)
    targets = {name: destination(out_root, name) for name in planned}
    for target in targets.values():
        target.require_free(resume=job.resume, overwrite=job.overwrite)
    revision = pinned_revision(dataset)
    cards = {}
    for name, split in planned.items():
        source = HubRows(
            dataset=dataset,
            subset=data_subset,
            hf_split=split.hf_split,
            revision=revision,
            column=text_column,
            errors=recipe.errors,
        )
        of_split = attrs.evolve(recipe, max_samples=split.max_samples)
        cards[name] = targets[name].convert(source, of_split, split=name, job=job)
    return cards
