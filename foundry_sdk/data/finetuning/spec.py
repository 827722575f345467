"""``name: finetuning``: which examples, what of them is learned, and how they fill rows."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.data.contract import BatchSource, DataSpec, LoaderContext, PreprocessorSpec
from foundry_sdk.data.finetuning.options import Targets
from foundry_sdk.data.preprocess import is_import_path
from foundry_sdk.data.streams import ShardsSpec, StreamSpec, only
from foundry_sdk.data.text import IntegerType
from foundry_sdk.data.tokenizer import looks_like_path
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from foundry_sdk.data.contract import Preprocess

_MEMORY: Final = "examples are tokenized once, before the first step, and mixed over all of them"
_positive = validators.optional(validators.gt(0))


def _share(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number > 0, got {value!r}")


def _ratio(_: object, attribute: "attrs.Attribute[Any]", value: float | str | None) -> None:
    if value is None or value == "auto" or (not isinstance(value, str) and value >= 1):
        return
    raise ValueError(f"{attribute.name} must be a number >= 1, or 'auto', got {value!r}")


@attrs.frozen(kw_only=True)
class WeightedSourceSpec:
    """One source of a mixture: ``datasets: {name: ...}``.

    Attributes:
        weight: share of an epoch, relative to the other sources' numbers.
        hf_name, split, safe_load, hf_kwargs, preprocessing_fn, preprocessor, remote, local: as
            in the dataset, of this source.
    """

    weight: float = attrs.field(validator=_share)
    hf_name: str | None = None
    split: str | None = None
    safe_load: bool = False
    hf_kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    preprocessing_fn: str | Mapping[str, str] | None = None
    preprocessor: PreprocessorSpec | None = None
    remote: str | None = None
    local: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse no source, several, and options of another one."""
        _check_source(self)


@attrs.frozen(kw_only=True)
class FinetuningDatasetSpec:
    """``dataset:`` of a finetuning loader.

    Examples are from one of: ``hf_name``, ``remote`` and ``local``, ``streams``, ``datasets``.

    Attributes:
        hf_name: dataset of the hub, a folder, a file, or a format of local files: json (JSON Lines
            too), csv, parquet; or a URI (s3://, https:// …) of such a file, or of what has one
            that is named as the split.
        split: of it; with shards, the folder below ``remote`` and ``local``.
        safe_load: read only files that end in .csv, .json, .jsonl or .parquet.
        hf_kwargs: of ``datasets.load_dataset``, such as ``data_dir`` or ``data_files``.
        preprocessing_fn: what makes an example of a row: the name of a preprocessor,
            ``import.path:function``, or ``{prompt: COLUMN, response: COLUMN}``. None = the
            preprocessor of that ``hf_name`` if there is one, else rows are examples already.
        preprocessor: the same as a component; found by name from the two above.
        datasets: several sources of any kind by name, each with its weight.
        streams: several folders of MDS shards by name, each with its share.
        remote, local: of a single folder of MDS shards; its columns are prompt and response,
            messages, turns, or input_ids and labels.
        download_retry, download_timeout, validate_hash, keep_zip: see ``ShardsSpec``.
        token_encoding_type: numbers in columns of raw bytes.
        epoch_size: examples an epoch, drawn from all streams in proportion; None = all.
        sampling_method: "balanced" draws other examples each epoch where not all are taken,
            "fixed" always the same.
        max_seq_len: must be the run's, where given.
        decoder_only_format: False = context for an encoder, target for a decoder. None = as the
            model needs it.
        target_prompts: which prompts are learned: "none", "all", or "length>=N".
        target_responses: which responses are learned: "last" or "all".
        shuffle: mix examples, anew each epoch; False = as they lie.
        shuffle_seed: of the order.
        packing_ratio: examples a row, on average; "auto" = as many as waste none. None = 1.
        max_leftover_bins_to_keep: rows that did not get into a batch and wait for the next one;
            None = all.
        pad_to_longest: pad a batch to its longest row only.
        allow_pad_trimming: the same up to a multiple of 8, from the second batch on.
        cache_dir: where tokenized examples are kept; None = ``$FOUNDRY_CACHE/finetuning``, else
            ``~/.cache/foundry-sdk/finetuning``.
        eos_token_id, bos_token_id: must be the tokenizer's, where given.
        override_eos_token_id_mismatch_error, override_bos_token_id_mismatch_error: another
            number is meant so.
        batch_size, batching_method, replication, seq_parallel_replication, allow_unsafe_types,
            stream_name, stream_config: names of the reference that may only have their default.
    """

    without_effect = MappingProxyType(
        {
            **dict.fromkeys(
                ("shuffle_algo", "shuffle_block_size", "num_canonical_nodes", "partition_algo"),
                _MEMORY,
            ),
            **dict.fromkeys(("predownload", "cache_limit", "sampling_granularity"), _MEMORY),
            "auto_packing_replication": "the ratio is found over the global batch",
        }
    )

    hf_name: str | None = None
    split: str | None = None
    safe_load: bool = False
    hf_kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    preprocessing_fn: str | Mapping[str, str] | None = None
    preprocessor: PreprocessorSpec | None = None
    datasets: Mapping[str, WeightedSourceSpec] | None = None
    streams: Mapping[str, StreamSpec] | None = None
    remote: str | None = None
    local: str | None = None
    download_retry: int = attrs.field(default=2, validator=validators.gt(0))
    download_timeout: float = attrs.field(default=60.0, validator=validators.gt(0))
    validate_hash: str | None = None
    keep_zip: bool = False
    token_encoding_type: IntegerType = "int64"  # noqa: S105  # a type of numbers
    epoch_size: int | None = attrs.field(default=None, validator=_positive)
    sampling_method: Literal["balanced", "fixed"] = "balanced"
    max_seq_len: int | None = attrs.field(default=None, validator=_positive)
    decoder_only_format: bool | None = None
    target_prompts: str = "none"
    target_responses: str = "last"
    shuffle: bool = False
    shuffle_seed: int = attrs.field(default=0, validator=validators.ge(0))
    packing_ratio: float | str | None = attrs.field(default=None, validator=_ratio)
    max_leftover_bins_to_keep: int | None = attrs.field(
        default=None, validator=validators.optional(validators.ge(0))
    )
    pad_to_longest: bool = False
    allow_pad_trimming: bool = False
    cache_dir: str | None = None
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    override_eos_token_id_mismatch_error: bool = False
    override_bos_token_id_mismatch_error: bool = False
    batch_size: int | None = attrs.field(
        default=None, validator=only(None, "the batch size is global_train_batch_size's share")
    )
    batching_method: str = attrs.field(
        default="random", validator=only("random", "batches are drawn from all streams")
    )
    replication: int | None = attrs.field(
        default=None, validator=only(None, 1, "each rank reads its own examples")
    )
    seq_parallel_replication: int | None = attrs.field(
        default=None, validator=only(None, 1, "sequence parallelism is not supported")
    )
    allow_unsafe_types: bool = attrs.field(
        default=False, validator=only(False, "pickled columns can run code and are never read")
    )
    stream_name: str = attrs.field(
        default="stream", validator=only("stream", "there are no other classes of streams")
    )
    stream_config: Mapping[str, Any] | None = attrs.field(
        default=None, validator=only(None, {}, "say it in the keys of the stream")
    )

    def __attrs_post_init__(self) -> None:
        """Refuse no source, several, and options of another one."""
        Targets(prompts=self.target_prompts, responses=self.target_responses)
        if self.datasets:
            _check_mixture(self)
        else:
            _check_source(self)
        if self.max_leftover_bins_to_keep is not None and self.packing_ratio is None:
            raise ValueError("max_leftover_bins_to_keep is for packing; give packing_ratio too")
        if self.pad_to_longest and self.allow_pad_trimming:
            raise ValueError("either pad_to_longest or allow_pad_trimming")
        if self.decoder_only_format is False:
            check_apart(self)

    def shards(self) -> ShardsSpec | None:
        """Return the part that is about shards; None where there are none."""
        streams = dict(self.streams or {})
        if self.remote is not None or self.local is not None:
            streams["data"] = StreamSpec(remote=self.remote, local=self.local, split=self.split)
        for name, source in (self.datasets or {}).items():
            if source.hf_name is None:
                streams[name] = StreamSpec(
                    remote=source.remote, local=source.local, split=source.split
                )
        if not streams:
            return None
        return ShardsSpec(
            streams=streams,
            split=self.split,
            download_retry=self.download_retry,
            download_timeout=self.download_timeout,
            validate_hash=self.validate_hash,
            keep_zip=self.keep_zip,
            epoch_size=self.epoch_size if self.streams else None,
        )

    def root(self) -> Path:
        """Return where tokenized examples are kept."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        cache = os.environ.get("FOUNDRY_CACHE") or "~/.cache/foundry-sdk"
        return Path(cache).expanduser() / "finetuning"


@attrs.frozen(kw_only=True)
class FinetuningDataSpec(DataSpec):
    """Prompts and responses, or chats, for supervised finetuning.

    Attributes:
        dataset: which examples, and what is made of them.
        drop_last: leave out the examples at the end of an epoch that fill no batch; False = the
            last batch is filled up with rows without labels.
        pin_memory: put batches where copies to a GPU run beside work.
        num_workers, prefetch_factor, persistent_workers, timeout: accepted without effect.
    """

    kind = "finetuning"

    dataset: FinetuningDatasetSpec
    drop_last: bool = False
    pin_memory: bool = True
    num_workers: int = attrs.field(default=0, validator=validators.ge(0))
    prefetch_factor: int = attrs.field(default=2, validator=validators.gt(0))
    persistent_workers: bool = True
    timeout: float = attrs.field(default=0, validator=validators.ge(0))

    def notes(self) -> tuple[str, ...]:
        """Return what has no effect, one line."""
        if self.num_workers == 0:
            return ()
        return (
            "finetuning loader: num_workers, prefetch_factor, persistent_workers and timeout are "
            "accepted without effect: examples are tokenized once, before the first step, and "
            "batches are cut from a mapped file",
        )

    def check(self) -> None:
        """Refuse files and shards of this machine that are not there, or are broken.

        Raises:
            DataError: naming the file or folder.
        """
        shards = self.dataset.shards()
        if shards is not None:
            shards.local_indexes()
        check_place(self.dataset)
        for source in (self.dataset.datasets or {}).values():
            check_place(source)

    def build(self, context: LoaderContext) -> BatchSource:
        """Return this rank's source; every rank of the run calls this.

        Raises:
            DataError: the data is missing, broken, or has nothing to learn.
        """
        from foundry_sdk.data.finetuning.build import build_source

        return build_source(self, context)


def function_of(spec: FinetuningDatasetSpec | WeightedSourceSpec) -> "Preprocess | None":
    """Return the function that makes an example of a row; None = rows are examples.

    Raises:
        DataError: ``preprocessing_fn`` names no function.
    """
    from foundry_sdk.data.preprocess import ColumnNames, import_function

    if spec.preprocessor is not None:
        return spec.preprocessor.build()
    if isinstance(spec.preprocessing_fn, str):
        return import_function(spec.preprocessing_fn)
    if spec.preprocessing_fn is not None:
        return ColumnNames(**spec.preprocessing_fn)
    return None


def check_place(spec: FinetuningDatasetSpec | WeightedSourceSpec) -> None:
    """Refuse an ``hf_name`` that can only be a path of this machine, where nothing is.

    Raises:
        DataError: with the path and the working directory.
    """
    name = spec.hf_name
    if name is None or "://" in name or Path(name).expanduser().exists():
        return
    if looks_like_path(name):
        raise DataError(
            f"dataset.hf_name: there is no file or folder {name!r} (working directory "
            f"{Path.cwd()}), split {spec.split!r}; a dataset of the hub is 'owner/name'"
        )


def check_apart(spec: FinetuningDatasetSpec) -> None:
    """Refuse options that an encoder-decoder cannot have.

    Raises:
        ValueError: with what to change.
    """
    if spec.target_prompts.lower() != "none" or spec.target_responses.lower() != "last":
        raise ValueError(
            "an encoder-decoder learns the last response only; set target_prompts: none and "
            "target_responses: last"
        )
    if spec.packing_ratio not in (None, 1):
        raise ValueError("packing_ratio is for decoders; leave it out")


def _check_mixture(spec: FinetuningDatasetSpec) -> None:
    names = ("hf_name", "split", "streams", "remote", "local", "preprocessing_fn", "preprocessor")
    given = [name for name in (*names, "hf_kwargs", "safe_load") if getattr(spec, name)]
    if given:
        raise ValueError(f"{', '.join(given)}: with datasets, say it in each of them")


def _check_source(spec: FinetuningDatasetSpec | WeightedSourceSpec) -> None:
    streams = getattr(spec, "streams", None)
    sharded = spec.remote is not None or spec.local is not None or bool(streams)
    if spec.hf_name is None and not sharded:
        raise ValueError("the dataset needs hf_name, streams, or one of remote and local")
    if spec.hf_name is not None and sharded:
        raise ValueError("either hf_name, or MDS shards by streams, remote or local")
    if spec.hf_name is None:
        given = {
            "hf_kwargs": spec.hf_kwargs,
            "preprocessing_fn": spec.preprocessing_fn,
            "preprocessor": spec.preprocessor,
            "safe_load": spec.safe_load,
        }
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: for hf_name only; shards hold examples that went through "
                "their preprocessor when they were written"
            )
        if streams and (spec.remote is not None or spec.local is not None):
            raise ValueError("the dataset needs either streams: or one of remote: and local:")
        if isinstance(spec, FinetuningDatasetSpec):
            spec.shards()
        return
    if spec.split is None:
        raise ValueError("split is required with hf_name, such as 'train'")
    if spec.hf_kwargs.get("trust_remote_code"):
        raise ValueError("hf_kwargs.trust_remote_code: code of a dataset is not run here")
    if "://" in spec.hf_name and (twice := {"data_files", "data_dir"} & {*spec.hf_kwargs}):
        raise ValueError(
            f"hf_kwargs.{min(twice)}: hf_name {spec.hf_name!r} names the files already"
        )
    for key in ("split", "streaming"):
        if key in spec.hf_kwargs:
            raise ValueError(f"hf_kwargs.{key}: say split beside hf_name; streaming is not used")
    _check_preprocessing(spec)


def _check_preprocessing(spec: FinetuningDatasetSpec | WeightedSourceSpec) -> None:
    chosen = spec.preprocessing_fn
    if isinstance(chosen, Mapping):
        if set(chosen) != {"prompt", "response"}:
            raise ValueError(
                f"preprocessing_fn: a mapping needs exactly prompt and response, got {[*chosen]}"
            )
        if spec.preprocessor is not None:
            raise ValueError("either preprocessing_fn or preprocessor")
    elif isinstance(chosen, str) and not is_import_path(chosen):
        if spec.preprocessor is None:
            raise ValueError(
                f"preprocessing_fn {chosen!r} is no import path such as my_data.formatting:example,"
                " and there is no preprocessor of that name (foundry plugins lists them)"
            )
        if spec.preprocessor.kind != chosen:
            raise ValueError(
                f"preprocessing_fn {chosen!r} and preprocessor {spec.preprocessor.kind!r} disagree"
            )
    elif chosen is not None and spec.preprocessor is not None:
        raise ValueError("either preprocessing_fn or preprocessor")
