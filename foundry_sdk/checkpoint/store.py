"""A folder of checkpoints: written so that none is ever half there, and read only when whole."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor

from foundry_sdk.checkpoint import verify, writing
from foundry_sdk.checkpoint.layout import STATE, folder_name, rank_file, step_folders, to_delete
from foundry_sdk.checkpoint.matching import check_matching
from foundry_sdk.checkpoint.objects import is_uri, shown
from foundry_sdk.checkpoint.ranks import Ranks, on_every_rank, on_first_rank
from foundry_sdk.checkpoint.tensors import read_tensors, total_bytes, write_tensors
from foundry_sdk.checkpoint.verify import Checkpoint, Skipped
from foundry_sdk.errors import CheckpointError

if TYPE_CHECKING:
    from foundry_sdk.lock import FolderLock

_log = logging.getLogger(__name__)


@attrs.frozen
class Saved:
    """A committed checkpoint. ``seconds`` the save took; ``bytes`` of all ranks' files.

    ``written`` is False where that step was there already, whole, and nothing was done.
    """

    path: Path
    seconds: float
    bytes: int
    written: bool = True


class CheckpointStore:
    """The checkpoints of one run, in one folder that every rank sees.

    A save writes to ``step-000123.tmp-<nonce>/``; when all ranks have their files on the disk,
    rank 0 adds the manifest with every file's size and SHA-256, renames the folder to
    ``step-000123`` and only then deletes older ones. So a step folder is whole or was damaged
    later, and damage is found by its digest.

    Every method is called on every rank. One writer at a time: ``prepare`` locks the folder.

    Attributes:
        folder: where the step folders are.
        skipped: what the last ``newest`` passed over, with the reasons.
    """

    def __init__(self, folder: str | Path, ranks: Ranks, *, keep: int = -1) -> None:
        """Use ``folder``; nothing is touched before ``prepare`` or ``save``.

        Args:
            folder: on a local or network file system; all ranks see the same.
            ranks: this process among its peers.
            keep: how many checkpoints to keep, at least 1; -1 for all. Two whole ones always
                stay, also with 1, because the newest may turn out to be damaged.

        Raises:
            CheckpointError: ``keep`` is out of range, or the folder is a remote one.
        """
        if keep != -1 and keep < 1:
            raise CheckpointError(
                f"save_num_checkpoints_to_keep: expected -1 (all) or at least 1, got {keep}"
            )
        if is_uri(folder):
            raise CheckpointError(
                f"{shown(str(folder))}: a store needs a folder of this machine; MirroredStore "
                "keeps copies of it elsewhere"
            )
        self.folder = Path(folder)
        self.skipped: tuple[Skipped, ...] = ()
        self._ranks = ranks
        self._keep = keep
        self._lock: FolderLock | None = None
        self._leads = ranks.rank == 0
        """Whether this rank is the one that makes and removes folders on its disk."""
        self._prepared = False
        self._known_whole: set[Path] = set()  # rank 0 relies on it, to read each only once

    # ---- writing

    def prepare(self) -> None:
        """Make the folder, lock it against other runs, and remove what a killed save left.

        Call it before anything slow: a folder that cannot be written fails here.

        Raises:
            LockedRunError: another process saves to this folder.
            CheckpointError: the folder cannot be made or written, or a rank does not see it.
        """
        if self._prepared:
            return
        about = f"save_folder {self.folder}"

        def take() -> None:
            self._lock = writing.take_folder(self.folder)
            if self._keep == 1:
                _log.warning(
                    "save_num_checkpoints_to_keep: 1: two are kept, as the newest alone may be "
                    "found damaged when it is needed"
                )

        on_every_rank(self._ranks, about, lambda: take() if self._leads else None)
        on_every_rank(
            self._ranks, about, lambda: writing.check_shared(self.folder, self._ranks.rank)
        )
        self._prepared = True

    def finish(self) -> None:
        """Wait until everything that was saved is where it belongs; on every rank.

        Raises:
            CheckpointWriteError: something is not.
        """

    def close(self) -> None:
        """Let others write to the folder; not a place for ranks to wait for each other."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None
        self._prepared = False

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, Any],
        per_rank: Mapping[str, Any],
    ) -> Saved:
        """Write the checkpoint of ``step`` and commit it, or leave everything as it was.

        Args:
            step: optimizer steps made.
            tensors: sharded (DTensor), or plain and equal on every rank; the same names on all.
            scalars: JSON values, equal on every rank (rank 0's are written).
            per_rank: JSON values of this rank, such as the state of its random generators.

        Raises:
            NoSpaceError: there is too little room (twice the size is asked for).
            CheckpointWriteError: a rank could not write. Raised on every rank.
        """
        started = time.monotonic()
        self.prepare()
        about = f"saving step {step} to {self.folder}"
        ranks, final = self._ranks, self.folder / folder_name(step)
        if self._whole_already(final):
            self._prune()  # a process killed between commit and prune left that undone
            return Saved(final, time.monotonic() - started, 0, written=False)
        needed = total_bytes(tensors)
        name = on_first_rank(ranks, about, lambda: writing.begin(self.folder, step, needed))
        temporary = self.folder / name
        try:
            on_every_rank(ranks, about, lambda: self._join(temporary, needed))
            on_every_rank(ranks, about, lambda: writing.check_shared(temporary, ranks.rank))
            written = write_tensors(temporary, tensors, world_size=ranks.world_size)
            values = {rank_file(ranks.rank): per_rank}
            if ranks.rank == 0:
                values[STATE] = scalars
            parts = on_every_rank(
                ranks, about, lambda: writing.write_values(temporary, values, written())
            )
            manifest = writing.manifest_of(step, parts, tensors)
            on_every_rank(
                ranks,
                about,
                lambda: writing.commit(temporary, final, manifest) if self._leads else None,
            )
        except CheckpointError:
            if self._leads:
                writing.drop(temporary)
            ranks.barrier()
            raise
        self._known_whole.add(final)
        self._prune()
        size = sum(entry.size for entry in manifest.files.values())
        return Saved(final, time.monotonic() - started, size)

    def discard_after(self, step: int) -> tuple[Path, ...]:
        """Delete the checkpoints of later steps than ``step`` and return their paths.

        For a run that goes on from an older checkpoint in its own folder: what is later belongs
        to another course of the run and must not be taken for its newest.
        """
        self.prepare()

        def delete() -> list[str]:
            if not self._leads:
                return []
            later = [path for number, path in step_folders(self.folder) if number > step]
            for path in later:
                writing.delete(path)
            return [str(path) for path in later]

        about = f"cleaning {self.folder}"
        return tuple(Path(path) for path in on_every_rank(self._ranks, about, delete)[0])

    # ---- reading

    def holds_any(self) -> bool:
        """Return whether there is any step folder, whole or not."""
        return bool(self.steps())

    def steps(self) -> tuple[int, ...]:
        """Return the steps that have a folder, newest first, without looking into them."""
        return tuple(
            on_first_rank(
                self._ranks,
                f"reading {self.folder}",
                lambda: [step for step, _ in step_folders(self.folder)],
                reading=True,
            )
        )

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; None where there is no step folder at all.

        Walks from the newest to the oldest, and logs each one that it passes over; they are in
        ``skipped`` too. The order is that of the steps, never of clocks.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole: starting anew
                would hide that. Lists each with its reason.
        """
        found, self.skipped = verify.newest(self.folder, self._ranks)
        if found is not None:
            self._known_whole.add(found.path)
        return found

    def at(self, path: str | Path) -> Checkpoint:
        """Return the checkpoint in ``path``: a step folder, or a folder of them (the newest).

        Raises:
            CheckpointError: there is none, or one of its files is not as it was written.
        """
        return verify.at(Path(path), self._ranks)

    def load(
        self,
        checkpoint: Checkpoint,
        tensors: Mapping[str, Tensor],
        *,
        prefix: str = "",
        strict: bool = True,
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Fill ``tensors`` in place, whatever number of ranks wrote them, and return the values.

        Args:
            checkpoint: from ``newest`` or ``at``.
            tensors: destinations by name; sharded ones get their shard.
            prefix: leave the checkpoint's tensors whose names do not start with it alone.
            strict: names must be the same on both sides; else what both have is loaded and the
                rest is logged. Shapes must be equal in any case.

        Returns:
            The scalars, and this rank's own values or None where the checkpoint was written by
            another number of ranks.

        Raises:
            CheckpointError: tensors are missing, left over, or of another shape.
        """
        path, world_size = checkpoint.path, self._ranks.world_size
        matching = check_matching(
            path, checkpoint.manifest.tensors, tensors, prefix=prefix, strict=strict
        )
        read_tensors(path, matching, world_size=world_size)
        scalars: dict[str, Any] = {}
        own: dict[str, Any] = {}

        def read() -> None:
            scalars.update(json.loads((path / STATE).read_bytes()))
            if checkpoint.manifest.world_size == world_size:
                own.update(json.loads((path / rank_file(self._ranks.rank)).read_bytes()))

        on_every_rank(self._ranks, f"reading {path}", read, reading=True)
        return scalars, own if checkpoint.manifest.world_size == world_size else None

    # ---- parts

    def _whole_already(self, final: Path) -> bool:
        about = f"reading {final}"
        if not on_first_rank(self._ranks, about, final.exists, reading=True):
            return False
        try:
            verify.verified(final, self._ranks)
        except CheckpointError as error:
            _log.warning("written anew: %s", error)
            return False
        return True

    def _join(self, temporary: Path, needed: int) -> None:
        """Take part in a save that rank 0 has begun; nothing to do where the disk is its own."""

    def _kept(self) -> int:
        """Return how many step folders are to stay on the disk, -1 for all."""
        return self._keep

    def _prune(self) -> None:
        """Delete what need not be kept; failing to is no reason to end a run.

        The checkpoint just written is known to be whole, and mostly so is the one before; rank 0
        reads one again only after a resume from an older one.
        """
        if self._leads:
            folders = dict(step_folders(self.folder))
            doomed = to_delete(
                tuple(folders),
                keep=self._kept(),
                is_whole=lambda step: self._is_whole(folders[step]),
            )
            try:
                for step in doomed:
                    writing.delete(folders[step])
            except OSError as error:
                _log.warning("%s: an old checkpoint stays: %s", self.folder, error)
        self._ranks.barrier()

    def _is_whole(self, path: Path) -> bool:
        if path not in self._known_whole:
            try:
                verify.check_whole(path)
            except CheckpointError:
                return False
            self._known_whole.add(path)
        return True
