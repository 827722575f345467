"""Finding checkpoints that are whole: every file with the size and digest it was written with."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.checkpoint.files import digest_file
from foundry_sdk.checkpoint.layout import (
    MANIFEST,
    Manifest,
    check_names,
    read_manifest,
    step_folders,
)
from foundry_sdk.checkpoint.ranks import Ranks, on_every_rank, on_first_rank
from foundry_sdk.errors import CheckpointError

_THREADS: Final = 4
_log = logging.getLogger(__name__)


@attrs.frozen
class Checkpoint:
    """A checkpoint that was found whole."""

    path: Path
    step: int
    manifest: Manifest


@attrs.frozen
class Skipped:
    """A checkpoint that was passed over, and why."""

    path: Path
    reason: str


def check_whole(path: Path, *, part: int = 0, parts: int = 1) -> None:
    """Check the manifest and all names and sizes, and the digests of every ``parts``-th file.

    Raises:
        CheckpointError: naming the checkpoint and the first file that is not as it was written.
    """
    try:
        manifest = read_manifest(path)
        check_names(path, manifest)
        names = sorted(manifest.files)[part::parts]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
            found = zip(names, pool.map(lambda name: digest_file(path / name), names), strict=True)
            for name, entry in found:
                if entry != manifest.files[name]:
                    raise CheckpointError(
                        f"{name}: damaged: its SHA-256 is not that of the manifest"
                    )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.filename}: {error.strerror}") from error


def verified(path: Path, ranks: Ranks) -> Checkpoint:
    """Return the checkpoint in a step folder, its files checked by all ranks together.

    Raises:
        CheckpointError: it is not whole; raised on every rank.
    """
    on_every_rank(
        ranks,
        f"reading {path}",
        lambda: check_whole(path, part=ranks.rank, parts=ranks.world_size),
        reading=True,
    )
    manifest = read_manifest(path)
    return Checkpoint(path, manifest.step, manifest)


def newest(folder: Path, ranks: Ranks) -> tuple[Checkpoint | None, tuple[Skipped, ...]]:
    """Return the newest whole checkpoint in ``folder`` and the newer ones that are not whole.

    None where there is no step folder at all.

    Raises:
        CheckpointError: there are checkpoints, and none is whole; lists each with its reason.
    """
    paths = on_first_rank(
        ranks,
        f"reading {folder}",
        lambda: [str(path) for _, path in step_folders(folder)],
        reading=True,
    )
    skipped: list[Skipped] = []
    for path in map(Path, paths):
        try:
            return verified(path, ranks), tuple(skipped)
        except CheckpointError as error:
            _log.warning("passed over a checkpoint: %s", error)
            skipped.append(Skipped(path, str(error)))
    if skipped:
        raise none_is_whole(str(folder), skipped)
    return None, ()


def none_is_whole(place: str, skipped: Sequence[Skipped]) -> CheckpointError:
    """Return the error for a place that has checkpoints, all of them damaged."""
    reasons = "\n".join(f"  {each.reason}" for each in skipped)
    return CheckpointError(
        f"{place}: {len(skipped)} checkpoint(s), and none of them is whole:\n{reasons}\n"
        "move them away to start anew"
    )


def at(path: Path, ranks: Ranks) -> Checkpoint:
    """Return the checkpoint in ``path``: a step folder, or the newest of a folder of them.

    Raises:
        CheckpointError: there is none, or one of its files is not as it was written.
    """
    kind = on_first_rank(ranks, f"reading {path}", lambda: _kind(path), reading=True)
    if kind == "step":
        return verified(path, ranks)
    if kind == "folder":
        found, _ = newest(path, ranks)
        if found is not None:
            return found
    raise CheckpointError(
        f"{path}: {_KINDS[kind]}; expected a folder such as step-000100 with a {MANIFEST}, "
        "or a folder of those"
    )


_KINDS = {
    "missing": "no such file or folder",
    "file": "a file (checkpoints of LLM Foundry and torch are pickles and are not read here)",
    "folder": "no checkpoint in this folder",
}


def _kind(path: Path) -> str:
    if not path.exists():
        return "missing"
    if not path.is_dir():
        return "file"
    return "folder" if step_folders(path) else ("step" if _looks_like_step(path) else "folder")


def _looks_like_step(path: Path) -> bool:
    """Return whether ``path`` is meant as a step folder: by its name, or by its manifest."""
    return path.name.startswith("step-") or (path / MANIFEST).exists()
