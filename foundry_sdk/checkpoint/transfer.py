"""Checkpoints of one run in an object store: copied there, found there, fetched from there.

An object store has no rename, so what makes a step's folder a checkpoint there is its manifest,
which is stored last and deleted first. Nothing here needs other processes: it may run in a thread.
"""

import functools
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import attrs

from foundry_sdk.checkpoint.files import FileEntry, digest_file, explain, sync_folder, write_file
from foundry_sdk.checkpoint.layout import (
    MANIFEST,
    Manifest,
    folder_name,
    read_manifest,
    step_of,
    to_delete,
)
from foundry_sdk.checkpoint.objects import ObjectFolder, PassingError, missing
from foundry_sdk.checkpoint.patience import Patience
from foundry_sdk.checkpoint.writing import delete as delete_folder
from foundry_sdk.checkpoint.writing import drop
from foundry_sdk.errors import CheckpointError, NoSpaceError, RemoteStoreError
from foundry_sdk.faultpoints import reach

T = TypeVar("T")
_STREAMS: Final = 8
_LOOK: Final = 1.0
"""Seconds between two looks for what other machines store."""


@attrs.frozen
class RemoteCheckpoints:
    """The checkpoints below ``objects``, one folder a step as on a disk."""

    objects: ObjectFolder
    patience: Patience

    def url(self, step: int) -> str:
        """Return a step's address, for messages."""
        return f"{self.objects.url}/{folder_name(step)}"

    def check_writable(self) -> None:
        """Store, verify and delete a small object, so that what would fail later fails now.

        Raises:
            RemoteStoreError: it can't be done.
        """
        name = f".writable-{secrets.token_hex(4)}"
        content = name.encode()
        entry = FileEntry(len(content), _sha256(content))
        self._ask(f"cannot store {self.objects.url}", lambda: self._put(name, content, entry))
        self._ask(f"cannot delete {self.objects.url}", lambda: self.objects.delete(name))

    def steps(self) -> dict[int, dict[str, int]]:
        """Return the files and sizes of each step's folder, whole or not, newest step first."""
        found: dict[int, dict[str, int]] = {}
        for name, size in self._sizes("step-").items():
            folder, _, file = name.partition("/")
            step = step_of(Path(folder))
            if step is not None and file:
                found.setdefault(step, {})[file] = size
        return dict(sorted(found.items(), reverse=True))

    # ---- storing

    def upload(self, local: Path, *, leads: bool) -> None:
        """Store the files of a step that are on this disk, each verified; then the manifest.

        What the store has already is left there, so an upload that broke off is finished.

        Args:
            local: a committed step folder.
            leads: store the manifest, after the files of other machines have arrived too.

        Raises:
            RemoteStoreError: the store does not answer, or refuses.
            CheckpointError: a file is not what it was when it was written.
        """
        manifest = read_manifest(local)
        prefix = f"{local.name}/"
        there = self._sizes(prefix)
        if (
            leads
            and prefix + MANIFEST in there
            and self._read(prefix + MANIFEST) != (manifest.render())
        ):
            self._delete([prefix + MANIFEST])  # what it stands for is about to be replaced
        here = [name for name in manifest.files if (local / name).exists()]

        def store(name: str) -> None:
            entry = manifest.files[name]
            known = there.get(prefix + name) == entry.size
            if known and self._entry(prefix + name) == entry:
                return
            if digest_file(local / name) != entry:
                raise CheckpointError(f"{local}: {name}: damaged since it was written")
            self._ask(
                f"cannot store {self.objects.url}/{prefix}{name}",
                lambda: self._put(prefix + name, local / name, entry),
            )

        _each(store, here)
        if not leads:
            return
        self._await(prefix, {n: e for n, e in manifest.files.items() if n not in set(here)})
        wanted = {prefix + name for name in [*manifest.files, MANIFEST]}
        self._delete(name for name in self._sizes(prefix) if name not in wanted)
        content = manifest.render()
        entry = FileEntry(len(content), _sha256(content))
        reach("remote.commit")
        self._ask(
            f"cannot store {self.objects.url}/{prefix}{MANIFEST}",
            lambda: self._put(prefix + MANIFEST, content, entry),
        )
        reach("remote.committed")

    def prune(self, *, keep: int, known: set[int]) -> None:
        """Delete what need not be kept; two whole ones always stay.

        Args:
            keep: how many to keep; -1 for all.
            known: steps that this process stored or fetched and verified.
        """
        steps = self.steps()
        for step in to_delete(
            tuple(steps), keep=keep, is_whole=lambda step: step in known or self._is_whole(step)
        ):
            self.delete_step(step, steps[step])

    def delete_step(self, step: int, files: Iterable[str]) -> None:
        """Delete a step's files, the manifest first."""
        prefix = f"{folder_name(step)}/"
        reach("remote.prune")
        self._delete([prefix + MANIFEST])
        self._delete(prefix + name for name in files if name != MANIFEST)

    # ---- fetching

    def fetch(self, step: int, folder: Path) -> None:
        """Make ``folder/step-…`` a whole checkpoint with the files of the store.

        Files that are there already, with the manifest's digest, are not fetched again. Each file
        is verified before the folder gets its name.

        Raises:
            CheckpointError: the store's is not whole.
            NoSpaceError: the disk has no room for it.
            RemoteStoreError: the store does not answer, or refuses.
        """
        final = folder / folder_name(step)
        manifest = self._manifest(step)
        temporary = folder / f"{final.name}.tmp-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            good = {name for name, entry in manifest.files.items() if _is(final / name, entry)}
            if len(good) == len(manifest.files) and _is_manifest(final / MANIFEST, manifest):
                return
            self._check_room(folder, manifest)
            temporary.mkdir()
            for name in good:
                shutil.copyfile(final / name, temporary / name)
            _each(
                lambda name: self._fetch(step, name, temporary / name, manifest.files[name]),
                [name for name in manifest.files if name not in good],
            )
            for path in temporary.iterdir():
                if path.name not in manifest.files:  # of an attempt that failed
                    path.unlink()
            write_file(temporary / MANIFEST, manifest.render())
            sync_folder(temporary)
            if final.exists():
                delete_folder(final)
            os.rename(temporary, final)
            sync_folder(folder)
        except OSError as error:
            drop(temporary)
            raise explain(error, f"fetching {self.url(step)} to {folder}") from error
        except CheckpointError:
            drop(temporary)
            raise

    def _manifest(self, step: int) -> Manifest:
        try:
            manifest = Manifest.parse(self._read(f"{folder_name(step)}/{MANIFEST}"))
        except RemoteStoreError:
            raise
        except CheckpointError as error:
            if self.objects.url in str(error):  # missing
                raise
            raise CheckpointError(f"{self.url(step)}: {error}") from error
        if manifest.step != step:
            raise CheckpointError(f"{self.url(step)}: {MANIFEST}: of step {manifest.step}")
        return manifest

    def _check_room(self, folder: Path, manifest: Manifest) -> None:
        needed = sum(entry.size for entry in manifest.files.values())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise NoSpaceError(
                f"{folder}: fetching {self.url(manifest.step)} needs {needed / 1e9:,.3f} GB free, "
                f"there are {free / 1e9:,.3f} GB"
            )

    def _fetch(self, step: int, name: str, path: Path, entry: FileEntry) -> None:
        """Fetch a file; one that arrives damaged is fetched once more."""
        source = f"{folder_name(step)}/{name}"
        reason = f"{self.url(step)}/{name}: damaged: its SHA-256 is not that of the manifest"
        tries = 0

        def attempt() -> None:
            nonlocal tries
            # A file of its own, as an attempt that was left behind may still be writing.
            partial = path.with_name(f"{name}.{secrets.token_hex(4)}")
            self.objects.get(source, partial)
            if digest_file(partial) != entry:
                partial.unlink()
                tries += 1
                raise (PassingError if tries == 1 else CheckpointError)(reason)
            _sync_file(partial)
            os.rename(partial, path)

        self._ask(f"cannot fetch {self.objects.url}/{source}", attempt)

    # ---- parts

    def _put(self, name: str, content: Path | bytes, entry: FileEntry) -> None:
        self.objects.put(name, content, entry)
        if self.objects.entry(name) != entry:
            raise PassingError(f"{self.objects.url}/{name}: the store has not what was sent")

    def _await(self, prefix: str, files: dict[str, FileEntry]) -> None:
        """Wait until other machines have stored their files; each new one renews the patience."""
        waiting = dict(files)
        end = time.monotonic() + self.patience.deadline
        while waiting:
            there = self._sizes(prefix)
            done = [
                name
                for name, entry in waiting.items()
                if there.get(prefix + name) == entry.size and self._entry(prefix + name) == entry
            ]
            for name in done:
                del waiting[name]
                end = time.monotonic() + self.patience.deadline
            if waiting and time.monotonic() > end:
                raise RemoteStoreError(
                    f"{self.objects.url}/{prefix}: {len(waiting)} file(s) of other machines did "
                    f"not arrive, {sorted(waiting)[0]} among them"
                )
            if waiting:
                self.patience.pause(min(_LOOK, self.patience.deadline / 4))

    def _is_whole(self, step: int) -> bool:
        prefix = f"{folder_name(step)}/"
        try:
            manifest = self._manifest(step)
            _each(lambda name: self._check(prefix + name, manifest.files[name]), manifest.files)
        except CheckpointError:
            return False
        return True

    def _check(self, name: str, entry: FileEntry) -> None:
        found = self._entry(name)
        if found is None:
            raise missing(self.objects.url, name)
        if found != entry:
            raise CheckpointError(f"{self.objects.url}/{name}: damaged")

    def _sizes(self, below: str) -> dict[str, int]:
        return self._ask(f"cannot list {self.objects.url}", lambda: self.objects.sizes(below))

    def _entry(self, name: str) -> FileEntry | None:
        return self._ask(
            f"cannot verify {self.objects.url}/{name}", lambda: self.objects.entry(name)
        )

    def _read(self, name: str) -> bytes:
        return self._ask(f"cannot read {self.objects.url}/{name}", lambda: self.objects.read(name))

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            delete = functools.partial(self.objects.delete, name)
            self._ask(f"cannot delete {self.objects.url}/{name}", delete)

    def _ask(self, doing: str, action: Callable[[], T]) -> T:
        return self.patience(doing, action)


def _each(action: Callable[[str], None], names: Iterable[str]) -> None:
    """Run ``action`` for every name, several at a time; after the first failure none is begun."""
    pool = ThreadPoolExecutor(_STREAMS, thread_name_prefix="remote")
    try:
        for job in [pool.submit(action, name) for name in names]:
            job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _is(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and digest_file(path) == entry


def _is_manifest(path: Path, manifest: Manifest) -> bool:
    return path.is_file() and path.read_bytes() == manifest.render()


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
