"""Checkpoints that are written to a disk and copied to an object store while training goes on."""

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from foundry_sdk.checkpoint import verify, writing
from foundry_sdk.checkpoint.jobs import Job, wait_together
from foundry_sdk.checkpoint.layout import (
    MANIFEST,
    folder_name,
    read_manifest,
    step_folders,
    step_of,
)
from foundry_sdk.checkpoint.objects import open_folder
from foundry_sdk.checkpoint.patience import Patience
from foundry_sdk.checkpoint.ranks import Ranks, on_every_rank, on_first_rank
from foundry_sdk.checkpoint.store import CheckpointStore, Saved
from foundry_sdk.checkpoint.transfer import RemoteCheckpoints
from foundry_sdk.checkpoint.verify import Checkpoint, Skipped
from foundry_sdk.errors import (
    CheckpointError,
    CheckpointWriteError,
    RemoteStoreError,
)

_log = logging.getLogger(__name__)
_LOCAL: Final = 2
"""Whole checkpoints that stay on the disk when all are in the store."""
_GRACE: Final = 5.0


class MirroredStore(CheckpointStore):
    """A ``CheckpointStore`` whose checkpoints count when a copy of them is in an object store.

    A save is committed on the disk as always. Then a thread copies it: on every machine (or
    wherever ranks see the same disk) the lowest rank copies the files that are on its disk, and
    rank 0 stores the manifest when all have arrived. Training goes on meanwhile; the next save
    waits for the copy before, so at most one is under way. The thread does file and network
    input and output only; what came of it is agreed on by all ranks in ``save`` and ``finish``.

    A copy that failed is tried again with the next save, and at last in ``finish``.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, uri: str, *, keep: int = -1, patience: Patience
    ) -> None:
        """Use the local ``folder`` and the store's ``uri``; neither is touched yet.

        Args:
            folder: of this machine; the machines of a run need not share it.
            ranks: this process among its peers.
            uri: ``s3://bucket/prefix``, or what a package of fsspec knows.
            keep: how many checkpoints to keep in the store; see ``CheckpointStore``. On the disk
                the newest two stay, and what is not in the store yet.
            patience: with the store.

        Raises:
            CheckpointError: ``keep`` is out of range, or no store is at ``uri``.
        """
        super().__init__(folder, ranks, keep=keep)
        self._remote = RemoteCheckpoints(open_folder(uri, seconds=patience.answer), patience)
        self._disks = 0
        self._pending: set[int] = set()  # equal on all ranks: on the disk, not yet in the store
        self._stored: set[int] = set()  # equal on all ranks: known to be whole in the store
        self._copied: list[int] = []  # on rank 0, by the copy under way
        self._upload: Job | None = None
        self._uploading = False  # equal on all ranks

    @property
    def url(self) -> str:
        """The store's folder, as messages show it."""
        return self._remote.objects.url

    # ---- writing

    def prepare(self) -> None:
        """Also find out who shares a disk, and whether the store can be written.

        Raises:
            RemoteStoreError: it can't.
        """
        if self._prepared:
            return
        self._find_disks()
        super().prepare()
        about = f"save_folder {self.url}"
        self._transfer(about, self._remote.check_writable, everywhere=False)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, Any],
        per_rank: Mapping[str, Any],
    ) -> Saved:
        """Commit on the disk, wait for the copy before, and begin the copy of this one."""
        saved = super().save(step, tensors, scalars, per_rank)
        if step not in self._stored:
            self._pending.add(step)
        failure = self._join_upload()
        if failure is not None and self._ranks.rank == 0:
            earlier = ", ".join(map(folder_name, sorted(self._pending - {step})))
            kept = f"{earlier}: in {self.folder} only" if earlier else "old ones stay in the store"
            _log.warning("checkpoints: %s; %s; it is tried again now", failure, kept)
        self._begin_upload()
        return saved

    def finish(self) -> None:
        """Wait until all copies are in the store; what failed before is tried once more.

        Raises:
            CheckpointWriteError: a checkpoint is not in the store.
        """
        failure = self._join_upload()
        if self._pending and failure is None:
            self._begin_upload()
            failure = self._join_upload()
        if self._pending:
            names = ", ".join(map(folder_name, sorted(self._pending)))
            raise CheckpointWriteError(
                f"{names}: not stored in {self.url}, only in {self.folder}: "
                f"{failure}; the same command with autoresume: true tries again"
            )
        if failure is not None and self._ranks.rank == 0:
            _log.warning("checkpoints: %s; old ones stay in the store", failure)
        self._prune()  # what stayed on the disk only until it was stored

    def close(self) -> None:
        """Give a copy that is still under way a few seconds, then break it off."""
        if self._upload is not None:
            self._upload.wait(_GRACE)
            if not self._upload.done():
                _log.warning(
                    "%s: the copy of a checkpoint is broken off; it is whole in %s, and copied "
                    "when the run goes on from there",
                    self.url,
                    self.folder,
                )
            elif (failure := self._upload.failure()) is not None:
                _log.warning("checkpoints: %s; kept in %s", failure, self.folder)
            self._upload = None
        self._remote.patience.give_up()
        super().close()

    def discard_after(self, step: int) -> tuple[Path, ...]:
        """Delete later checkpoints from the store too."""
        deleted = super().discard_after(step)

        def delete() -> None:
            for number, files in self._remote.steps().items():
                if number > step:
                    self._remote.delete_step(number, files)

        self._transfer(f"cleaning {self.url}", delete, everywhere=False)
        return deleted

    # ---- reading

    def holds_any(self) -> bool:
        """Return whether there is any step folder, on the disk or in the store."""
        return super().holds_any() or bool(self._listed())

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint of disk and store, fetched if need be.

        A copy without manifest never became a checkpoint; one with a manifest that is not whole
        is a damaged one. Both are logged and in ``skipped``.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
            RemoteStoreError: the store does not answer: what is newest can't be told.
        """
        self._find_disks()
        here, there = self.steps(), self._listed()
        skipped: list[Skipped] = []
        damaged: list[Skipped] = []
        found: Checkpoint | None = None
        for step in sorted({*here, *there}, reverse=True):
            try:
                found = self._obtain(step, here=step in here, there=there.get(step, False))
                break
            except RemoteStoreError:
                raise
            except CheckpointError as error:
                _log.warning("passed over a checkpoint: %s", error)
                skipped.append(Skipped(self.folder / folder_name(step), str(error)))
                if there.get(step, self._disks == 1):
                    damaged.append(skipped[-1])
        self.skipped = tuple(skipped)
        if found is None and damaged:
            raise verify.none_is_whole(self.url, damaged)
        if found is not None:
            self._known_whole.add(found.path)
            if self._prepared:
                self._take_up(here, max((step for step in there if there[step]), default=-1))
        return found

    def obtain(self, step: int) -> Checkpoint:
        """Return the checkpoint of ``step``, fetched if need be.

        Raises:
            CheckpointError: there is none, or it is not whole.
        """
        self._find_disks()
        return self._obtain(step, here=False, there=self._listed().get(step, False))

    # ---- parts: disks

    def _find_disks(self) -> None:
        """Let the lowest rank of those that see the same folder lead there."""
        if self._disks:
            return
        ranks, about = self._ranks, f"save_folder {self.folder}"
        token = on_first_rank(ranks, about, lambda: secrets.token_hex(4))
        mark = self.folder / f".disk-{token}-{ranks.rank}"

        def make() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()

        def lowest() -> int:
            seen = self.folder.glob(f".disk-{token}-*")
            return min(int(path.name.rpartition("-")[2]) for path in seen)

        on_every_rank(ranks, about, make)
        leaders = on_every_rank(ranks, about, lowest)
        on_every_rank(ranks, about, mark.unlink)
        self._leads = leaders[ranks.rank] == ranks.rank
        self._disks = len(set(leaders))

    def _join(self, temporary: Path, needed: int) -> None:
        """Make the temporary folder on the disks that rank 0 does not see."""
        if self._leads and self._ranks.rank != 0:
            writing.require_room(temporary.parent, needed)
            temporary.mkdir()

    def _kept(self) -> int:
        """Keep two, and what is not in the store yet."""
        folders = [step for step, _ in step_folders(self.folder)]
        unstored = [position for position, step in enumerate(folders) if step in self._pending]
        return max([_LOCAL, *(position + 1 for position in unstored)])

    # ---- parts: copying

    def _begin_upload(self) -> None:
        if self._keep > 0:  # what would not be kept there need not be copied any more
            self._pending = set(sorted(self._pending)[-max(self._keep, _LOCAL) :])
        if not self._pending:
            return
        pending = sorted(self._pending, reverse=True)  # the newest counts most
        self._uploading, self._copied = True, []
        if self._leads:
            self._upload = Job(lambda: self._copy(pending))

    def _copy(self, pending: list[int]) -> None:
        """Run in a thread: no collectives, and nothing that belongs to the loop."""
        for step in pending:
            started = time.monotonic()
            path = self.folder / folder_name(step)
            self._remote.upload(path, leads=self._ranks.rank == 0)
            if self._ranks.rank == 0:
                self._copied.append(step)
                size = sum(entry.size for entry in read_manifest(path).files.values())
                seconds = time.monotonic() - started
                url = self._remote.url(step)
                _log.info("%s: stored, %.3f GB in %.1f s", url, size / 1e9, seconds)
        if self._ranks.rank == 0:
            self._remote.prune(keep=self._keep, known={*self._stored, *pending})

    def _join_upload(self) -> str | None:
        """Wait for the copy under way, on every rank; return why it failed, if it did."""
        if not self._uploading:
            return None
        about = f"storing checkpoints in {self.url}"
        wait_together(self._ranks, about, self._upload)
        failures = [
            text for text in self._ranks.gather(self._upload and self._upload.failure()) if text
        ]
        self._upload, self._uploading = None, False
        self._stored.update(self._ranks.broadcast(self._copied))
        self._pending -= self._stored
        return str(failures[0]) if failures else None

    def _take_up(self, here: Sequence[int], newest_stored: int) -> None:
        """Begin to copy what a killed run left on the disk only."""
        for step in here if self._disks == 1 else ():
            if step > newest_stored and step not in self._pending:
                path = self.folder / folder_name(step)
                try:
                    verify.verified(path, self._ranks)
                except CheckpointError as error:
                    _log.warning("not stored: %s", error)
                else:
                    self._pending.add(step)
        self._begin_upload()

    # ---- parts: finding

    def _listed(self) -> dict[int, bool]:
        """Return the steps that the store has files of, and whether there is a manifest."""
        listed: dict[str, bool] = {}

        def look() -> None:
            for step, files in self._remote.steps().items():
                listed[str(step)] = MANIFEST in files

        self._transfer(f"reading {self.url}", look, everywhere=False)
        found = self._ranks.broadcast(listed)
        return {int(step): whole for step, whole in found.items()}

    def _obtain(self, step: int, *, here: bool, there: bool) -> Checkpoint:
        """Return a step's checkpoint: the store's, with what the disk has of it; or the disk's.

        Args:
            step: of the checkpoint.
            here: rank 0's disk has a folder of it.
            there: the store has a manifest of it.
        """
        path = self.folder / folder_name(step)
        if there:
            try:
                self._transfer(
                    f"fetching {self._remote.url(step)}",
                    lambda: self._remote.fetch(step, self.folder),
                    everywhere=True,
                )
            except RemoteStoreError:
                raise
            except CheckpointError as error:
                if not here or self._disks > 1:
                    raise
                _log.warning("%s; trying the copy in %s", error, self.folder)
            else:
                self._stored.add(step)
                return Checkpoint(path, step, read_manifest(path))
        elif not here or self._disks > 1:
            parts = "; each machine has a part of it" if here else ""
            raise CheckpointError(
                f"{self._remote.url(step)}: {MANIFEST}: missing, so it was never whole there{parts}"
            )
        found = verify.verified(path, self._ranks)
        self._pending.add(step)
        return found

    def _transfer(self, about: str, action: Callable[[], None], *, everywhere: bool) -> None:
        """Run ``action`` on rank 0 (or on every disk) while the others wait, however long.

        Raises:
            CheckpointError: it failed; raised on every rank.
        """
        runs = self._leads if everywhere else self._ranks.rank == 0
        job = Job(action) if runs else None
        wait_together(self._ranks, about, job)

        def result() -> None:
            try:
                if job is not None:
                    job.result()
            except RemoteStoreError as error:
                raise RemoteStoreError(
                    f"{error}; check the address, the credentials and the network"
                ) from error

        on_every_rank(self._ranks, about, result, reading=True)


def fetch_checkpoint(uri: str, ranks: Ranks, cache: Path, *, patience: Patience) -> Checkpoint:
    """Fetch the checkpoint that ``uri`` means into ``cache``: a step, or the newest of a folder.

    Raises:
        CheckpointError: there is none, or it is not whole.
        RemoteStoreError: the store does not answer, or refuses.
    """
    parent, _, name = uri.rstrip("/").rpartition("/")
    step = step_of(Path(name))
    store = MirroredStore(cache, ranks, uri if step is None else parent, patience=patience)
    found = store.newest() if step is None else store.obtain(step)
    if found is None:
        raise CheckpointError(f"{store.url}: no checkpoint there")
    return found
