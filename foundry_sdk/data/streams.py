"""What a loader over MDS shards is told: where they lie, how they are mixed, in what order."""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import validators

from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.data.index import INDEX_NAME, MDSIndex, read_index
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from foundry_sdk.data.streamed import VerifiedDataset
    from foundry_sdk.data.verified_stream import VerifiedStream

ShuffleAlgorithm = Literal["naive", "py1s", "py2s", "py1e", "py1br"]
BatchingMethod = Literal["random", "stratified", "per_stream"]
_SIZE: Final = re.compile(r"\d+(\.\d+)? ?([kmgtpe]?b|[kmbt])?", re.IGNORECASE)
_NODE_CANONICAL: Final = {"py1s": 64, "py2s": 64}

_positive = validators.optional(validators.gt(0))
_not_negative = validators.optional(validators.and_(validators.ge(0), validators.lt(math.inf)))


def only(*values_and_reason: Any) -> Callable[[object, "attrs.Attribute[Any]", Any], None]:  # noqa: ANN401
    """Return a validator for a name of the reference that can't have another value here."""
    *values, reason = values_and_reason

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value not in values:
            expected = " or ".join(repr(each) for each in values)
            raise ValueError(f"{attribute.name} must be {expected}, got {value!r}: {reason}")

    return check


def _check_size(_: object, attribute: "attrs.Attribute[Any]", value: int | str | None) -> None:
    if isinstance(value, str) and _SIZE.fullmatch(value):
        return
    if value is None or (isinstance(value, int) and value > 0):
        return
    raise ValueError(
        f"{attribute.name} must be a number > 0, or a text such as '10gb', got {value!r}"
    )


def _check_split(_: object, attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    if value is not None and (Path(value).is_absolute() or ".." in Path(value).parts):
        raise ValueError(
            f"{attribute.name} must be a folder inside, such as 'train', got {value!r}"
        )


@attrs.frozen(kw_only=True)
class StreamSpec:
    """One source of a mixture: ``streams: {name: ...}``.

    At most one of ``proportion``, ``repeat`` and ``choose`` says how much of it is taken; all
    streams say ``proportion``, or none does. With none of them, each sample comes once.

    Attributes:
        remote: folder or URL (``s3://...``) that shards are fetched from; None = they are in
            ``local`` already.
        local: folder of the shards on this machine; may be left out with ``remote``.
        split: folder below both.
        proportion: share of all samples of an epoch, relative to the other streams' numbers.
        repeat: times that each sample comes in an epoch; may be a fraction.
        choose: samples of an epoch.
        download_retry, download_timeout, validate_hash, keep_zip: as in the dataset; None =
            what the dataset says.
    """

    remote: str | None = None
    local: str | None = None
    split: str | None = attrs.field(default=None, validator=_check_split)
    proportion: float | None = attrs.field(default=None, validator=_not_negative)
    repeat: float | None = attrs.field(default=None, validator=_not_negative)
    choose: int | None = attrs.field(default=None, validator=_not_negative)
    download_retry: int | None = attrs.field(default=None, validator=_positive)
    download_timeout: float | None = attrs.field(default=None, validator=_positive)
    validate_hash: str | None = None
    keep_zip: bool | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse a stream without a place, or with two amounts."""
        if self.remote is None and self.local is None:
            raise ValueError("a stream needs remote: or local:")
        amounts = {"proportion": self.proportion, "repeat": self.repeat, "choose": self.choose}
        given = [name for name, value in amounts.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"at most one of proportion, repeat and choose, got {given}")


@attrs.frozen(kw_only=True)
class ShardsSpec:
    """The part of ``dataset:`` that says which shards are read, and in what order.

    Attributes:
        streams: several sources by name, instead of ``remote`` and ``local``.
        remote, local, split: of a single source, see ``StreamSpec``.
        download_retry: attempts per file.
        download_timeout: seconds per file.
        validate_hash: name of the hash that shards are checked with; None = the fastest one that
            the data has; "off" = size only.
        keep_zip: keep compressed shards beside the unpacked ones.
        epoch_size: samples an epoch, drawn from all streams in proportion; None = all.
        predownload: samples whose shards are fetched ahead; None = 8 batches.
        cache_limit: bytes (or "100gb") that downloaded shards may take; the longest unused ones
            are deleted. None = no limit.
        partition_algo: "relaxed" and "orig" give the same order here: no sample is repeated to
            make the ranks' shares equal.
        num_canonical_nodes: stretches that the data is read from in turn; None = 1 (64 for py1s
            and py2s) on any number of nodes. A multiple of the number of nodes lets each node
            fetch only its own part.
        shuffle: mix samples, anew each epoch; False = as they lie.
        shuffle_algo: how far apart samples are mixed; "py1e" spreads each shard evenly over a
            range of ``shuffle_block_size`` samples.
        shuffle_seed: of the order, independent of the run's seed.
        shuffle_block_size: None = max(4,000,000 / num_canonical_nodes, 262,144).
        sampling_method: "balanced" draws other samples each epoch where not all are taken,
            "fixed" always the same.
        sampling_granularity: samples drawn at a time from one shard.
        batching_method: "random", "stratified" (each batch in the streams' proportions), or
            "per_stream" (each batch from one stream).
        batch_size, replication, allow_unsafe_types, stream_name, stream_config: names of the
            reference that may only have their default.
    """

    streams: Mapping[str, StreamSpec] | None = None
    remote: str | None = None
    local: str | None = None
    split: str | None = attrs.field(default=None, validator=_check_split)
    download_retry: int = attrs.field(default=2, validator=validators.gt(0))
    download_timeout: float = attrs.field(default=60.0, validator=validators.gt(0))
    validate_hash: str | None = None
    keep_zip: bool = False
    epoch_size: int | str | None = attrs.field(default=None, validator=_check_size)
    predownload: int | None = attrs.field(default=None, validator=_positive)
    cache_limit: int | str | None = attrs.field(default=None, validator=_check_size)
    partition_algo: Literal["relaxed", "orig"] = "relaxed"
    num_canonical_nodes: int | None = attrs.field(default=None, validator=_positive)
    batch_size: int | None = attrs.field(
        default=None, validator=only(None, "the batch size is global_train_batch_size's share")
    )
    shuffle: bool = False
    shuffle_algo: ShuffleAlgorithm = "py1e"
    shuffle_seed: int = attrs.field(default=9176, validator=validators.ge(0))
    shuffle_block_size: int | None = attrs.field(default=None, validator=_positive)
    sampling_method: Literal["balanced", "fixed"] = "balanced"
    sampling_granularity: int = attrs.field(default=1, validator=validators.gt(0))
    batching_method: BatchingMethod = "random"
    allow_unsafe_types: bool = attrs.field(
        default=False, validator=only(False, "pickled columns can run code and are never read")
    )
    replication: int | None = attrs.field(
        default=None, validator=only(None, 1, "each rank reads its own samples")
    )
    stream_name: str = attrs.field(
        default="stream", validator=only("stream", "there are no other classes of streams")
    )
    stream_config: Mapping[str, Any] | None = attrs.field(
        default=None, validator=only(None, {}, "say it in the keys of the stream")
    )

    def __attrs_post_init__(self) -> None:
        """Refuse no source, two kinds of sources, and amounts that contradict each other."""
        single = self.remote is not None or self.local is not None
        if single == bool(self.streams):
            raise ValueError("the dataset needs either streams: or one of remote: and local:")
        streams = self.streams or {}
        with_share = [name for name, stream in streams.items() if stream.proportion is not None]
        if with_share and len(with_share) < len(streams):
            missing = sorted(set(streams) - set(with_share))
            raise ValueError(f"either all streams have proportion: or none, {missing} have none")
        if with_share and not any(streams[name].proportion for name in with_share):
            raise ValueError("the streams' proportions are all 0")
        absolute = [n for n, s in streams.items() if s.repeat is not None or s.choose is not None]
        if absolute and self.epoch_size is not None:
            raise ValueError(f"epoch_size contradicts repeat or choose of the streams {absolute}")

    def all_streams(self) -> dict[str, StreamSpec]:
        """Return the streams by name; a single source is called "data"."""
        if self.streams:
            return dict(self.streams)
        return {"data": StreamSpec(remote=self.remote, local=self.local, split=self.split)}

    def open(self, context: LoaderContext) -> "VerifiedDataset":
        """Return the dataset over all streams; every rank of the run calls this.

        Raises:
            DataError: a stream is missing or broken, or two lie in one folder.
        """
        from foundry_sdk.data.streamed import VerifiedDataset

        if not context.training and self.batching_method != "random":
            raise DataError(
                f"batching_method: {self.batching_method} leaves samples out, which an evaluation "
                "must not; use random in eval_loader"
            )
        canonical = self.num_canonical_nodes or _NODE_CANONICAL.get(self.shuffle_algo, 1)
        streams = self.make_streams(context)
        return VerifiedDataset.open(
            streams,
            epoch_size=self.epoch_size,
            cache_limit=self._cache_limit(streams),
            sampling_method=self.sampling_method,
            sampling_granularity=self.sampling_granularity,
            num_canonical_nodes=canonical,
            batch_size=context.device_batch,
            shuffle=self.shuffle,
            shuffle_algo=self.shuffle_algo,
            shuffle_seed=self.shuffle_seed,
            shuffle_block_size=self.shuffle_block_size,
            batching_method=self.batching_method,
        )

    def local_indexes(self) -> dict[str, MDSIndex]:
        """Return the checked index of each stream that nothing is fetched for, by its name.

        Raises:
            DataError: a folder or its index is missing or broken, or two streams lie in one folder.
        """
        found, names = dict[str, MDSIndex](), dict[Path, str]()
        for name, spec in self.all_streams().items():
            if spec.local is None or _true_remote(spec.remote, Path(spec.local).expanduser()):
                continue
            split = spec.split if spec.split is not None else self.split
            folder = Path(spec.local).expanduser() / (split or "")
            _refuse_shared(folder, name, names)
            found[name] = read_index(folder / INDEX_NAME)
            if not found[name].samples:
                raise DataError(f"{folder}: the data has no samples; convert it again")
        return found

    def _cache_limit(self, streams: "list[VerifiedStream]") -> int | str | None:
        """Return the limit; where nothing is fetched there is no cache to limit."""
        kept = [stream.name for stream in streams if stream.remote is None]
        if self.cache_limit is None or len(kept) == len(streams):
            return None
        if kept:
            raise DataError(
                f"cache_limit deletes shards that can be fetched again, but those of {kept} are "
                "nowhere else; name their folder remote: and give another local:, or leave out "
                "cache_limit"
            )
        return self.cache_limit

    def make_streams(self, context: LoaderContext) -> "list[VerifiedStream]":
        """Return the streams, not opened yet.

        Raises:
            DataError: two lie in one folder, or one has no folder to download into.
        """
        from foundry_sdk.data.verified_stream import VerifiedStream

        streams, folders = [], dict[Path, str]()
        for name, spec in self.all_streams().items():
            folder = _local_folder(name, spec, context.cache_dir)
            split = spec.split if spec.split is not None else self.split
            _refuse_shared(folder / (split or ""), name, folders)
            amounts = {"proportion": spec.proportion, "repeat": spec.repeat, "choose": spec.choose}
            streams.append(
                VerifiedStream(
                    name=name,
                    validate_hash=spec.validate_hash or self.validate_hash,
                    remote=_true_remote(spec.remote, folder),
                    local=str(folder),
                    split=split,
                    download_retry=spec.download_retry or self.download_retry,
                    download_timeout=spec.download_timeout or self.download_timeout,
                    keep_zip=self.keep_zip if spec.keep_zip is None else spec.keep_zip,
                    **amounts,
                )
            )
        return streams


def _refuse_shared(folder: Path, name: str, folders: dict[Path, str]) -> None:
    """Note whose folder it is.

    Raises:
        DataError: it is another stream's.
    """
    place = folder.resolve()
    if place in folders:
        raise DataError(
            f"streams {folders[place]!r} and {name!r} lie in one folder, {place}; give "
            "each its own local:"
        )
    folders[place] = name


def _local_folder(name: str, spec: StreamSpec, cache_dir: Path | None) -> Path:
    if spec.local is not None:
        return Path(spec.local).expanduser()
    if cache_dir is None:
        raise DataError(
            f"stream {name!r}: {spec.remote} needs a folder for downloaded shards; give local:"
        )
    # Nodes may share the run's folder, but each fetches its own shards.
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    node = int(os.environ.get("RANK", "0")) // local_ranks
    return cache_dir / f"node-{node}" / re.sub(r"[^\w.-]|^\.+", "_", name)


def _true_remote(remote: str | None, folder: Path) -> str | None:
    """Return None for data that is in its place already, as then nothing is fetched or deleted."""
    if remote is None:
        return None
    remote = remote.removeprefix("file://")
    if "://" in remote:
        return remote
    return None if Path(remote).expanduser().resolve() == folder.resolve() else remote
