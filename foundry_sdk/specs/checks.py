"""What must hold between the fields of a run, wherever its spec comes from."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from foundry_sdk.specs.places import Path
from foundry_sdk.units import Duration, TimeUnit

Problem = tuple[Path, str]
"""Where, and what is wrong."""

MAX_SEED: Final = 2**32 - 2
HALF_WEIGHTS: Final = ("amp_bf16", "amp_fp8")
"""Precisions whose forwards can compute with bfloat16 weights."""
_RUN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def problems(fields: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the fields of a run.

    Args:
        fields: by name. A field that could not be read is left out, and what concerns it is
            not checked.
    """
    return [
        problem
        for check in (
            _numbers,
            _durations,
            _lengths,
            _packing,
            _schedule,
            _names,
            _sharding,
            _precision,
            _remote_places,
        )
        for problem in check(fields)
    ]


def notes(fields: Mapping[str, Any]) -> list[str]:
    """Return what of a valid run has no effect or is replaced, one line each."""
    lines: list[str] = []
    for component in _components(fields):
        lines += component.notes()
    if fields.get("load_weights_only") and not fields.get("load_path"):
        lines.append("load_weights_only: without effect, as there is no load_path")
    sharding = fields.get("fsdp_config")
    if sharding is not None and sharding.activation_checkpointing_reentrant:
        lines.append(
            "fsdp_config.activation_checkpointing_reentrant: accepted without effect: "
            "activations are recomputed the non-reentrant way, with the same gradients"
        )
    if sharding is not None and sharding.state_dict_type == "full":
        lines.append(
            "fsdp_config.state_dict_type: accepted without effect: checkpoints are written in "
            "parts, by all ranks, and load on any number of them"
        )
    return list(dict.fromkeys(lines))


def _numbers(fields: Mapping[str, Any]) -> Iterator[Problem]:
    seed = fields.get("seed")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        yield ("seed",), f"must lie between 0 and {MAX_SEED}, got {seed}"
    micro = fields.get("device_train_microbatch_size")
    if isinstance(micro, int) and micro < 1:
        yield (
            ("device_train_microbatch_size",),
            f"must be a number of sequences >= 1, or 'auto', got {micro}",
        )
    evaluation = fields.get("device_eval_batch_size")
    if evaluation is not None and evaluation < 1:
        yield ("device_eval_batch_size",), f"must be >= 1, got {evaluation}"
    batches = fields.get("eval_subset_num_batches")
    if batches is not None and batches != -1 and batches < 1:
        yield ("eval_subset_num_batches",), f"must be >= 1, or -1 for all, got {batches}"
    keep = fields.get("save_num_checkpoints_to_keep")
    if keep is not None and keep != -1 and keep < 1:
        yield ("save_num_checkpoints_to_keep",), f"must be >= 1, or -1 for all, got {keep}"
    timeout = fields.get("dist_timeout")
    if timeout is not None and not 0 < timeout < float("inf"):
        yield ("dist_timeout",), f"must be a number of seconds > 0, got {timeout}"


def _durations(fields: Mapping[str, Any]) -> Iterator[Problem]:
    length = fields.get("max_duration")
    if isinstance(length, Duration) and length.unit is TimeUnit.DURATION:
        yield ("max_duration",), f"must not be a share of itself, got '{length}'"
    for name in ("max_duration", "save_interval", "console_log_interval"):
        duration = fields.get(name)
        if isinstance(duration, Duration) and duration.value == 0:
            yield (name,), f"must be longer than 0, got '{duration}'"


def _remote_places(fields: Mapping[str, Any]) -> Iterator[Problem]:
    from foundry_sdk.checkpoint.objects import is_uri, open_folder
    from foundry_sdk.errors import CheckpointError

    for name in ("save_folder", "load_path"):
        place = fields.get(name)
        if place is not None and is_uri(place):
            try:
                open_folder(place, seconds=1.0)  # asks nothing of the store
            except CheckpointError as error:
                yield (name,), str(error)


def _lengths(fields: Mapping[str, Any]) -> Iterator[Problem]:
    length = fields.get("max_seq_len")
    if length is None:
        return
    model = fields.get("model")
    longest = None if model is None else model.max_sequence_length()
    if longest is not None and length > longest:
        yield (
            ("max_seq_len",),
            f"{length} is longer than the sequences that the model takes (model: {longest})",
        )
    for path, loader in _loaders(fields):
        dataset = getattr(loader, "dataset", None)
        given = getattr(dataset, "max_seq_len", None)
        if isinstance(given, int) and given != length:
            yield (
                (*path, "dataset", "max_seq_len"),
                f"{given} disagrees with max_seq_len {length} of the run; leave one out",
            )


def _packing(fields: Mapping[str, Any]) -> Iterator[Problem]:
    model = fields.get("model")
    if model is None or model.isolates_documents() is not False:
        return
    for path, loader in _loaders(fields):
        if getattr(getattr(loader, "dataset", None), "packing_ratio", None) not in (None, 1):
            yield (
                (*path, "dataset", "packing_ratio"),
                "examples that share a row must not see each other, but this model would let "
                "them; set model.attn_config.attn_uses_sequence_id: true, or leave packing out",
            )


def _schedule(fields: Mapping[str, Any]) -> Iterator[Problem]:
    length = fields.get("max_duration")
    warmup = getattr(fields.get("scheduler"), "t_warmup", None)
    longest = getattr(fields.get("scheduler"), "t_max", None)
    if not isinstance(length, Duration):
        return
    if isinstance(warmup, Duration) and warmup.unit is length.unit and warmup.value > length.value:
        yield (
            ("scheduler", "t_warmup"),
            f"a warmup of '{warmup}' is longer than the run ('{length}')",
        )
    if not isinstance(longest, Duration) or longest.unit is not length.unit:
        return
    if longest.value < length.value:
        yield (
            ("scheduler", "t_max"),
            f"a schedule of '{longest}' ends before the run ('{length}'); use '1dur'",
        )


def _names(fields: Mapping[str, Any]) -> Iterator[Problem]:
    name = fields.get("run_name")
    if name is not None and not _RUN_NAME.fullmatch(name):
        yield (
            ("run_name",),
            f"is a folder's name: letters, digits, '.', '_' and '-' (no '.' first), got {name!r}",
        )
    entries: Sequence[Any] = fields.get("eval_loader") or ()
    for index, entry in enumerate(entries):
        if len(entries) > 1 and entry.label is None:
            yield ("eval_loader", index, "label"), "required where there are several eval loaders"
    labels = Counter(entry.label for entry in entries if entry.label is not None)
    for label, count in labels.items():
        if count > 1:
            yield ("eval_loader",), f"the label {label!r} is given {count} times"
        if not _RUN_NAME.fullmatch(label):
            yield ("eval_loader",), f"a label has letters, digits, '.', '_' and '-', got {label!r}"
    for family in ("callbacks", "loggers"):
        kinds = Counter(component.kind for component in fields.get(family) or ())
        for kind, count in kinds.items():
            if count > 1:
                yield (family,), f"{kind!r} is given {count} times"


def _sharding(fields: Mapping[str, Any]) -> Iterator[Problem]:
    sharding = fields.get("fsdp_config")
    if sharding is None:
        return
    if sharding.activation_checkpointing_policy != "full" and not sharding.activation_checkpointing:
        yield (
            ("fsdp_config", "activation_checkpointing_policy"),
            "without effect: activation_checkpointing is false",
        )
    if sharding.activation_cpu_offload:
        yield (
            ("fsdp_config", "activation_cpu_offload"),
            "not supported here; use activation_checkpointing",
        )


def _precision(fields: Mapping[str, Any]) -> Iterator[Problem]:
    precision, weights = fields.get("precision"), fields.get("weights")
    if weights in {"bf16", "bf16_fp32_masters"} and precision not in {None, *HALF_WEIGHTS}:
        yield (
            ("weights",),
            f"{weights!r} needs precision {' or '.join(HALF_WEIGHTS)}, not {precision}",
        )
    if fields.get("fp8_config") is not None and precision not in {None, "amp_fp8"}:
        yield ("fp8_config",), f"without effect: precision is {precision}, not amp_fp8"
    optimizer = fields.get("optimizer")
    if optimizer is None or weights is None:
        return
    if weights == "bf16" and optimizer.kind in {"adamw", "decoupled_adamw"}:
        yield (
            ("weights",),
            f"'bf16' cannot be used with {optimizer.kind}: bfloat16 has 8 bits, too few for the "
            "average of squared gradients; use decoupled_lionw, or weights: bf16_fp32_masters",
        )
    if weights != "bf16" and getattr(optimizer, "stochastic_rounding", False):
        yield (
            ("optimizer", "stochastic_rounding"),
            "without effect on float32 weights; it is for weights: bf16",
        )


def _loaders(fields: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    train: Path = ("train_loader",)
    if fields.get("train_loader") is not None:
        yield train, fields["train_loader"]
    entries: Sequence[Any] = fields.get("eval_loader") or ()
    single = len(entries) == 1 and entries[0].label is None
    for index, entry in enumerate(entries):
        place: Path = ("eval_loader",)
        if not single:
            place = ("eval_loader", index)
        yield place, entry.loader


def _components(fields: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("model", "loss", "optimizer", "scheduler"):
        if fields.get(name) is not None:
            yield fields[name]
    yield from (loader for _, loader in _loaders(fields))
    for name in ("callbacks", "loggers"):
        yield from fields.get(name) or ()
