"""The folder of a conversion: half of it is never taken for the whole.

Shards of ``OUT/train`` are written to ``OUT/.train.partial/data``; ``state.json`` beside it says
which are done and where the input goes on. Once all are there the folder ``data`` gets its index
and its card and is renamed to ``OUT/train``.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.data import mds
from foundry_sdk.data.card import CARD_NAME, DataCard
from foundry_sdk.errors import DataError, RunError
from foundry_sdk.faultpoints import reach

_STATE: Final = "state.json"
_OURS: Final = re.compile(r"index\.json|card\.json|shard\.\d{5,}\.mds(\.\w+)?|\..*\.partial")


@attrs.define
class State:
    """All that a conversion needs to go on.

    Attributes:
        arguments: what decides the result, as JSON values.
        shards: entries of the index, in order.
        position: where the source goes on; None = at the beginning.
        packer: ``Packer.state()``.
        carry: file with ``Packer.carry()``, its size and digest; None = nothing.
    """

    arguments: Mapping[str, Any]
    shards: list[Mapping[str, Any]] = attrs.field(factory=list)
    position: Mapping[str, Any] | None = None
    packer: Mapping[str, Any] | None = None
    carry: Mapping[str, Any] | None = None


def identity(arguments: Mapping[str, Any]) -> str:
    """Return the digest of ``arguments``: equal for conversions with equal results."""
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()


class Workspace:
    """The unfinished folder, held by this process."""

    def __init__(self, final: Path, state: State) -> None:
        self.final = final
        self.state = state
        self._root = _partial(final)
        self._data = self._root / "data"

    def write(self, shard: mds.Shard) -> None:
        """Write a shard's file; it counts from the next ``commit`` on."""
        with _writing(self._root):
            reach("convert.shard")
            mds.write_file(self._data / shard.basename, shard.data)
        self.state.shards.append(shard.entry)

    def commit(
        self, *, position: Mapping[str, Any], packer: Mapping[str, Any], carry: bytes
    ) -> None:
        """Make what has been written the point from which to go on."""
        old = self.state.carry
        name = f"carry.{len(self.state.shards):05}.bin"
        with _writing(self._root):
            reach("convert.carry")
            mds.write_file(self._root / name, carry)
            self.state.position, self.state.packer = position, packer
            self.state.carry = {"file": name, "sha256": hashlib.sha256(carry).hexdigest()}
            self._save()
            if old is not None and old["file"] != name:
                (self._root / str(old["file"])).unlink(missing_ok=True)

    def carry(self) -> bytes:
        """Return what the last commit carried.

        Raises:
            DataError: it is not what was written.
        """
        if self.state.carry is None:
            return b""
        path = self._root / str(self.state.carry["file"])
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.state.carry["sha256"]:
            raise DataError(f"{path}: damaged; begin anew with overwrite")
        return data

    def publish(self, card: DataCard) -> None:
        """Make the folder whole and visible, in one step."""
        with _writing(self._root):
            reach("convert.index")
            card.write(self._data)
            mds.write_file(self._data / mds.INDEX_NAME, mds.index_json(self.state.shards))
        known = {*card.shards, CARD_NAME, mds.INDEX_NAME}
        for stray in [path for path in self._data.iterdir() if path.name not in known]:
            stray.unlink()  # a shard that was written, but not committed, before a kill
        _sync_folder(self._data)
        old = self.final.with_name(f".{self.final.name}.old")
        if self.final.is_dir() and any(self.final.iterdir()):
            shutil.rmtree(old, ignore_errors=True)
            self.final.replace(old)
        reach("convert.publish")
        try:
            self._data.replace(self.final)
        except OSError as error:
            raise DataError(
                f"{self.final}: the finished folder {self._data} cannot be renamed to it "
                f"({error.strerror}); give an output folder that is no mount point, then resume"
            ) from error
        _sync_folder(self.final.parent)
        reach("convert.clean")
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self._root, ignore_errors=True)

    def verify(self) -> None:
        """Check what an earlier process has written.

        Raises:
            DataError: a shard is not what it was.
        """
        for entry in self.state.shards:
            stored = entry["zip_data"] or entry["raw_data"]
            path = self._data / stored["basename"]
            digest = ""
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != stored["hashes"]["sha256"]:
                raise DataError(f"{path}: missing or damaged; begin anew with overwrite")

    def begin(self) -> None:
        """Write the state as it is, so that whoever comes next knows whose folder it is."""
        with _writing(self._root):
            self._data.mkdir(exist_ok=True)
            self._save()

    def _save(self) -> None:
        reach("convert.state")
        text = json.dumps({"version": 1, **attrs.asdict(self.state)})
        mds.write_file(self._root / _STATE, text.encode())
        _sync_folder(self._root)


def finished(
    final: Path, is_same: Callable[[DataCard], bool], *, resume: bool, overwrite: bool
) -> DataCard | None:
    """Look at what is already at ``final``; None = the way is free.

    Args:
        final: the folder.
        is_same: tells whether a card is that of the conversion that is asked for.
        resume: such data is taken as it is.
        overwrite: other data is replaced.

    Returns:
        The card of the very conversion that is asked for, if it is done and ``resume`` is set.

    Raises:
        DataError: something else is there, and ``overwrite`` isn't set or would delete files that
            are no shards.
    """
    if final.exists() and not final.is_dir():
        raise DataError(f"{final}: a file; give a folder that is empty or does not exist")
    names = sorted(path.name for path in final.iterdir()) if final.is_dir() else []
    if not names:
        return None
    is_whole = (final / mds.INDEX_NAME).is_file()
    card = DataCard.read(final) if is_whole else None
    if resume and card is not None and is_same(card):
        shutil.rmtree(_partial(final), ignore_errors=True)
        shutil.rmtree(final.with_name(f".{final.name}.old"), ignore_errors=True)
        return card
    foreign = [name for name in names if _OURS.fullmatch(name) is None]
    if overwrite and not foreign:
        return None
    if overwrite:
        raise DataError(
            f"{final}: holds files that are no shards ({', '.join(foreign[:5])}), which overwrite "
            "does not delete; give another folder"
        )
    what = "data of another conversion" if card is not None and resume else "files"
    found = ", ".join(names[:3])
    raise DataError(
        f"{final}: not empty: it holds {what} ({found}{', ...' if len(names) > 3 else ''}); give "
        "another folder, or --overwrite to replace it"
    )


@contextmanager
def workspace(
    final: Path, arguments: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[Workspace]:
    """Hold the unfinished folder of ``final``, as it was left or new.

    Raises:
        DataError: it is held by another process, cannot be written, or belongs to another
            conversion.
    """
    root = _partial(final)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("w")
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{root}: another conversion is writing {final} now") from error
        space = Workspace(final, _state(root, arguments, resume=resume, overwrite=overwrite))
        space.verify()
        space.begin()
        yield space


def _state(root: Path, arguments: Mapping[str, Any], *, resume: bool, overwrite: bool) -> State:
    path = root / _STATE
    if path.is_file():
        saved = json.loads(path.read_bytes())
        saved.pop("version")
        state = State(**saved)
        if resume and identity(state.arguments) == identity(arguments):
            return state
        if not overwrite:
            raise DataError(_unfinished(root, state.arguments, arguments))
    for item in [item for item in root.iterdir() if item.name != "lock"]:
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    return State(arguments=arguments)


def _unfinished(root: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if not keys:
        return (
            f"{root}: an unfinished conversion with the same arguments; --resume goes on with it, "
            "--overwrite begins anew"
        )
    changes = "; ".join(f"{key} {_short(old.get(key))} → {_short(new.get(key))}" for key in keys)
    return (
        f"{root}: an unfinished conversion with other arguments or input ({changes}); give those, "
        "or --overwrite to begin anew"
    )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}); make room or give another folder; "
            "what is written so far is kept: --resume goes on"
        ) from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
