"""Conversions as functions, with the names and defaults of ``foundry data convert``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from foundry_sdk.data.card import DataCard
from foundry_sdk.data.convert.destination import destination
from foundry_sdk.data.convert.encode import Errors
from foundry_sdk.data.convert.hub import ALIASES, HubRows, pinned_revision, plan_splits
from foundry_sdk.data.convert.jsonlines import JsonLines, find_files
from foundry_sdk.data.convert.recipe import Recipe
from foundry_sdk.data.convert.run import Job, Report
from foundry_sdk.data.convert.textfiles import TextFiles, find_text_files
from foundry_sdk.data.mds import SHARD_BYTES
from foundry_sdk.errors import DataError


def convert_json(
    *,
    path: str | Path,
    out_root: str | Path,
    split: str = "train",
    concat_tokens: int | None = None,
    tokenizer: str | None = None,
    tokenizer_kwargs: Mapping[str, Any] | None = None,
    bos_text: str = "",
    eos_text: str = "",
    no_wrap: bool = False,
    compression: str | None = None,
    text_column: str = "text",
    max_samples: int | None = None,
    errors: Errors = "strict",
    size_limit: int = SHARD_BYTES,
    num_workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
) -> DataCard:
    """Convert JSON Lines to MDS shards in ``out_root/split``.

    Args:
        path: a file (``.jsonl``, ``.json`` with an object a line, either ``.gz``), a folder of
            them, or a pattern with ``*``; several are read in sorted order.
        out_root: local folder, or ``s3://bucket/prefix``.
        split: name of the folder below ``out_root``.
        concat_tokens: ids a row; None = each document is a row of text.
        tokenizer: folder or name on the hub; needed with ``concat_tokens``.
        tokenizer_kwargs: passed on to ``AutoTokenizer.from_pretrained``.
        bos_text: put before each document.
        eos_text: put after each document.
        no_wrap: throw away the rest of a document that fills a row.
        compression: "zstd", "zstd:7", "gz", "bz2", "br" or "snappy", each with or without level.
        text_column: key of the document in each row.
        max_samples: rows written at most.
        errors: what becomes of bytes that are not UTF-8: "strict" is an error, "replace" writes
            U+FFFD, "skip" leaves the document out; the card counts both.
        size_limit: bytes of a shard before compression.
        num_workers: tokenizing processes; None = one a core. The result is the same for any.
        resume: go on with the same conversion, unfinished or finished.
        overwrite: replace what is there, once the new data is whole.
        report: called about once a second with the progress.

    Returns:
        The card that lies beside the index.

    Raises:
        DataError: bad input or options, or ``out_root/split`` is not free.
        RunError: a worker process died, or a file could not be uploaded; ``resume`` goes on.
    """
    recipe = Recipe(
        concat_tokens=concat_tokens,
        tokenizer=tokenizer,
        tokenizer_kwargs=tokenizer_kwargs or {},
        bos_text=bos_text,
        eos_text=eos_text,
        wrap=not no_wrap,
        compression=compression,
        text_column=text_column,
        errors=errors,
        max_samples=max_samples,
        size_limit=size_limit,
    )
    job = Job(workers=num_workers, resume=resume, overwrite=overwrite, report=report)
    source = JsonLines(paths=find_files(path), column=text_column, errors=errors)
    return destination(out_root, split).convert(source, recipe, split=split, job=job)


def convert_text(
    *,
    input_folder: str | Path,
    output_folder: str | Path,
    concat_tokens: int | None = None,
    tokenizer: str | None = None,
    tokenizer_kwargs: Mapping[str, Any] | None = None,
    bos_text: str = "",
    eos_text: str = "",
    use_tokenizer_eos: bool = False,
    no_wrap: bool = False,
    compression: str | None = "zstd",
    max_samples: int | None = None,
    errors: Errors = "strict",
    size_limit: int = SHARD_BYTES,
    num_workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
) -> DataCard:
    """Convert every ``*.txt`` below ``input_folder``, each a document, in sorted order.

    The shards lie in ``output_folder`` itself. Line ends stay as they are; a byte order mark at
    the beginning of a file is left out.

    Args:
        input_folder: folder, searched to any depth, or a single file.
        output_folder: local folder, or ``s3://bucket/prefix``.
        concat_tokens: see ``convert_json``.
        tokenizer: see ``convert_json``.
        tokenizer_kwargs: see ``convert_json``.
        bos_text: see ``convert_json``.
        eos_text: see ``convert_json``.
        use_tokenizer_eos: take the tokenizer's own end-of-sequence token as ``eos_text``.
        no_wrap: see ``convert_json``.
        compression: see ``convert_json``.
        max_samples: see ``convert_json``.
        errors: see ``convert_json``.
        size_limit: see ``convert_json``.
        num_workers: see ``convert_json``.
        resume: see ``convert_json``.
        overwrite: see ``convert_json``.
        report: see ``convert_json``.

    Raises:
        DataError: see ``convert_json``.
        RunError: see ``convert_json``.
    """
    if use_tokenizer_eos and eos_text:
        raise DataError(f"use_tokenizer_eos with eos_text {eos_text!r}; give one of them")
    recipe = Recipe(
        concat_tokens=concat_tokens,
        tokenizer=tokenizer,
        tokenizer_kwargs=tokenizer_kwargs or {},
        bos_text=bos_text,
        eos_text=eos_text,
        wrap=not no_wrap,
        compression=compression,
        errors=errors,
        max_samples=max_samples,
        size_limit=size_limit,
    )
    if use_tokenizer_eos:
        recipe = recipe.with_own_eos()
    job = Job(workers=num_workers, resume=resume, overwrite=overwrite, report=report)
    source = TextFiles(paths=find_text_files(input_folder), errors=errors)
    return destination(output_folder, "").convert(source, recipe, split="", job=job)


def convert_hf(
    *,
    dataset: str,
    out_root: str | Path,
    data_subset: str | None = None,
    splits: Sequence[str] = (),
    hf_split: str | None = None,
    concat_tokens: int | None = None,
    tokenizer: str | None = None,
    tokenizer_kwargs: Mapping[str, Any] | None = None,
    bos_text: str = "",
    eos_text: str = "",
    no_wrap: bool = False,
    compression: str | None = None,
    text_column: str = "text",
    max_samples: int | None = None,
    errors: Errors = "strict",
    size_limit: int = SHARD_BYTES,
    num_workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
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
        concat_tokens: see ``convert_json``.
        tokenizer: see ``convert_json``.
        tokenizer_kwargs: see ``convert_json``.
        bos_text: see ``convert_json``.
        eos_text: see ``convert_json``.
        no_wrap: see ``convert_json``.
        compression: see ``convert_json``.
        text_column: see ``convert_json``.
        max_samples: rows written at most in each split.
        errors: see ``convert_json``.
        size_limit: see ``convert_json``.
        num_workers: see ``convert_json``.
        resume: see ``convert_json``.
        overwrite: see ``convert_json``.
        report: see ``convert_json``.

    Returns:
        The card of each split.

    Raises:
        DataError: see ``convert_json``; or the hub has no such dataset, or can't be reached.
        RunError: see ``convert_json``.
    """
    dataset = ALIASES.get(dataset, dataset)
    planned = plan_splits(dataset, splits, hf_split=hf_split, max_samples=max_samples)
    recipe = Recipe(
        concat_tokens=concat_tokens,
        tokenizer=tokenizer,
        tokenizer_kwargs=tokenizer_kwargs or {},
        bos_text=bos_text,
        eos_text=eos_text,
        wrap=not no_wrap,
        compression=compression,
        text_column=text_column,
        errors=errors,
        size_limit=size_limit,
    )
    job = Job(workers=num_workers, resume=resume, overwrite=overwrite, report=report)
    targets = {name: destination(out_root, name) for name in planned}
    for target in targets.values():
        target.require_free(resume=resume, overwrite=overwrite)
    revision = pinned_revision(dataset)
    cards = {}
    for name, split in planned.items():
        source = HubRows(
            dataset=dataset,
            subset=data_subset,
            hf_split=split.hf_split,
            revision=revision,
            column=text_column,
            errors=errors,
        )
        of_split = attrs.evolve(recipe, max_samples=split.max_samples)
        cards[name] = targets[name].convert(source, of_split, split=name, job=job)
    return cards
