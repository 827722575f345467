"""From the spec of a finetuning loader to its source."""

import logging
from typing import TYPE_CHECKING

from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.finetuning.collate import FinetuningCollator, Padding
from foundry_sdk.data.finetuning.mixture import Amount, Order
from foundry_sdk.data.finetuning.options import Targets
from foundry_sdk.data.finetuning.rows import ShardSource, TableSource
from foundry_sdk.data.finetuning.source import (
    FinetuningSource,
    PackingOptions,
    Part,
    SourceOptions,
)
from foundry_sdk.data.finetuning.spec import (
    FinetuningDatasetSpec,
    FinetuningDataSpec,
    WeightedSourceSpec,
    check_apart,
    function_of,
)
from foundry_sdk.data.finetuning.targets import Survey, survey
from foundry_sdk.data.finetuning.tokenized import SourceRecipe, tokenized
from foundry_sdk.data.text import check_document_ids
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foundry_sdk.data.verified_stream import VerifiedStream

_log = logging.getLogger(__name__)


def build_source(spec: FinetuningDataSpec, context: LoaderContext) -> FinetuningSource:
    """Return this rank's source; every rank of the run calls this.

    Raises:
        DataError: the data is missing, broken, does not fit the model, or has nothing to learn.
    """
    import torch

    dataset, tokenizer, length = spec.dataset, context.tokenizer, context.max_seq_len
    _check(dataset, context)
    targets = Targets(prompts=dataset.target_prompts, responses=dataset.target_responses)
    recipes, amounts = _recipes(dataset, context)
    parts = []
    for recipe, amount, examples in zip(
        recipes, amounts, tokenized(recipes, tokenizer, dataset.root()), strict=True
    ):
        found = survey(
            examples,
            targets,
            eos=tokenizer.eos_token_id,
            length=length,
            apart=context.encoder_decoder,
        )
        _report(recipe.name, found, len(examples), length)
        parts.append(Part(name=recipe.name, examples=examples, survey=found, amount=amount))
    if not any(len(part.survey.kept) for part in parts):
        raise DataError(
            f"no example is left to train on: {_reasons(parts)}; raise max_seq_len, or choose "
            "other columns with preprocessing_fn"
        )
    options = SourceOptions(
        targets=targets,
        eos=tokenizer.eos_token_id,
        collate=_collator(dataset, context),
        order=Order(
            shuffle=dataset.shuffle,
            seed=dataset.shuffle_seed,
            fixed=dataset.sampling_method == "fixed",
        ),
        epoch_size=dataset.epoch_size,
        drop_last=spec.drop_last,
        packing=_packing(dataset, context),
        pin_memory=spec.pin_memory and torch.cuda.is_available(),
    )
    return FinetuningSource(parts, options, context)


def pad_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of padding: the end-of-sequence token's where there is none."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def _check(dataset: FinetuningDatasetSpec, context: LoaderContext) -> None:
    length = context.max_seq_len
    if dataset.max_seq_len not in (None, length):
        raise DataError(
            f"dataset.max_seq_len is {dataset.max_seq_len}, but the run's max_seq_len is {length}; "
            "make them equal, or leave out the dataset's"
        )
    if dataset.decoder_only_format is context.encoder_decoder:
        model = "an encoder-decoder" if context.encoder_decoder else "a decoder"
        raise DataError(
            f"dataset.decoder_only_format is {str(dataset.decoder_only_format).lower()}, but the "
            f"model is {model}; correct it, or leave it out"
        )
    if context.encoder_decoder:
        try:
            check_apart(dataset)
        except ValueError as error:
            raise DataError(f"dataset: {error}") from error
    if length % 8:
        _log.warning("max_seq_len %d is no multiple of 8, which GPUs compute faster", length)
    check_document_ids(dataset, context.tokenizer)


def _recipes(
    dataset: FinetuningDatasetSpec, context: LoaderContext
) -> tuple[list[SourceRecipe], list[Amount]]:
    shards = dataset.shards()
    streams = {} if shards is None else {s.name: s for s in shards.make_streams(context)}
    recipes, amounts = [], []
    for name, source in (dataset.datasets or {}).items():
        stream = streams.get(name)
        recipes.append(
            _table(source, name) if stream is None else _shards(stream, dataset.token_encoding_type)
        )
        amounts.append(Amount(proportion=source.weight))
    if dataset.datasets:
        return recipes, amounts
    if shards is None:
        return [_table(dataset, f"{dataset.hf_name}:{dataset.split}")], [Amount()]
    for name, spec in shards.all_streams().items():
        recipes.append(_shards(streams[name], dataset.token_encoding_type))
        amounts.append(Amount(proportion=spec.proportion, repeat=spec.repeat, choose=spec.choose))
    return recipes, amounts


def _table(spec: FinetuningDatasetSpec | WeightedSourceSpec, name: str) -> SourceRecipe:
    source = TableSource(
        name=spec.hf_name or "",
        split=spec.split or "",
        options=spec.hf_kwargs,
        safe=spec.safe_load,
    )
    return SourceRecipe(name=name, source=source, preprocess=function_of(spec))


def _shards(stream: "VerifiedStream", encoding: str) -> SourceRecipe:
    return SourceRecipe(name=stream.name, source=ShardSource(stream=stream), pretokenized=encoding)


def _collator(dataset: FinetuningDatasetSpec, context: LoaderContext) -> FinetuningCollator:
    padding: Padding = "full"
    if dataset.pad_to_longest:
        padding = "longest"
    elif dataset.allow_pad_trimming:
        padding = "trimmed"
    return FinetuningCollator(
        length=context.max_seq_len,
        pad=pad_token_id(context.tokenizer),
        side="left" if context.tokenizer.padding_side == "left" else "right",
        padding=padding,
        documents=context.isolates_documents or dataset.packing_ratio not in (None, 1),
        encoder_decoder=context.encoder_decoder,
    )


def _packing(dataset: FinetuningDatasetSpec, context: LoaderContext) -> PackingOptions | None:
    ratio = dataset.packing_ratio
    if ratio is None or ratio == 1:
        return None
    if not context.training:
        _log.info("packing_ratio: not in an evaluation, where each example counts once")
        return None
    return PackingOptions(
        ratio=None if isinstance(ratio, str) else ratio, keep=dataset.max_leftover_bins_to_keep
    )


def _report(name: str, found: Survey, total: int, length: int) -> None:
    for reason, count in found.dropped.items():
        if count:
            _log.warning("%s: %d of %d examples are left out: %s", name, count, total, reason)
    if found.cut:
        _log.warning(
            "%s: %d of %d examples are longer than %d tokens and are cut",
            name, found.cut, len(found.kept), length,
        )  # fmt: skip


def _reasons(parts: list[Part]) -> str:
    return (
        "; ".join(
            f"{part.name}: {count} of {len(part.examples)} have {reason}"
            for part in parts
            for reason, count in part.survey.dropped.items()
            if count
        )
        or "the data has no rows"
    )
