"""Names of step folders, the manifest that makes one whole, and which may be deleted."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.checkpoint.files import FileEntry
from foundry_sdk.errors import CheckpointError

MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"
TENSOR_SUFFIX: Final = ".safetensors"
FORMAT: Final = 1
_STEP: Final = re.compile(r"step-(\d{6,})")
_TEMPORARY: Final = re.compile(r"step-\d{6,}\.tmp-[0-9a-f]+")


def folder_name(step: int) -> str:
    """Return the name of a step's folder, such as ``step-000123``."""
    return f"step-{step:06d}"


def rank_file(rank: int) -> str:
    """Return the name of the file with what belongs to one rank."""
    return f"rank-{rank:05d}.json"


def step_of(folder: Path) -> int | None:
    """Return the step that a folder's name says, or None where it is no step folder."""
    match = _STEP.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return the step folders in ``folder``, newest step first; none if it does not exist.

    The order is that of the steps: modification times follow clocks, and clocks jump.
    """
    if not folder.is_dir():
        return []
    found = [(step_of(path), path) for path in folder.iterdir() if path.is_dir()]
    return sorted(((step, path) for step, path in found if step is not None), reverse=True)


def unfinished_folders(folder: Path) -> list[Path]:
    """Return what interrupted saves left behind."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name))


@attrs.frozen
class TensorEntry:
    """Whole (unsharded) shape and dtype (``float32``) of one tensor."""

    shape: tuple[int, ...]
    dtype: str


@attrs.frozen(kw_only=True)
class Manifest:
    """What a whole checkpoint consists of.

    Attributes:
        step: optimizer steps made.
        world_size: how many ranks wrote it.
        versions: of the packages that wrote it, by name.
        files: size and digest of every file, by name.
        tensors: shape and dtype of every tensor, by name.
    """

    step: int
    world_size: int
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]

    def render(self) -> bytes:
        """Return the file's content; its first entry is the digest of all the rest."""
        content = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "versions": dict(self.versions),
            "files": {name: attrs.asdict(entry) for name, entry in self.files.items()},
            "tensors": {
                name: {"shape": list(entry.shape), "dtype": entry.dtype}
                for name, entry in self.tensors.items()
            },
        }
        return _sealed(content)

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read a manifest.

        Raises:
            CheckpointError: a byte of it is not as it was written, or it is of a newer format.
        """
        try:
            document = json.loads(data)
            content = document["content"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{MANIFEST}: damaged: {error}") from None
        if data != _sealed(content):
            raise CheckpointError(f"{MANIFEST}: damaged: it does not have its own digest")
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{MANIFEST}: format {content['format']}, this version reads {FORMAT}; "
                "update foundry-sdk"
            )
        for name in content["files"]:
            if Path(name).name != name or name in {"", ".", ".."}:
                raise CheckpointError(f"{MANIFEST}: {name!r} is not the name of a file")
        return cls(
            step=content["step"],
            world_size=content["world_size"],
            versions=content["versions"],
            files={name: FileEntry(**entry) for name, entry in content["files"].items()},
            tensors={
                name: TensorEntry(tuple(entry["shape"]), entry["dtype"])
                for name, entry in content["tensors"].items()
            },
        )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a step folder.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another step than the folder.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.parse(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{MANIFEST}: missing, so the checkpoint is not whole") from None
    except OSError as error:
        raise CheckpointError(f"{MANIFEST}: {error.strerror}") from error
    step = step_of(folder)
    if step is not None and step != manifest.step:
        raise CheckpointError(f"{MANIFEST}: of step {manifest.step}, in a folder of step {step}")
    return manifest


def check_names(folder: Path, manifest: Manifest) -> None:
    """Check that every file is there with its size, and no tensor file besides.

    Raises:
        CheckpointError: naming the first file that is not.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{name}: missing")
        size = path.stat().st_size
        if size != entry.size:
            raise CheckpointError(f"{name}: {size:,} bytes, expected {entry.size:,}")
    for path in folder.iterdir():
        if path.suffix == TENSOR_SUFFIX and path.name not in manifest.files:
            raise CheckpointError(f"{path.name}: a tensor file that is not of this checkpoint")


def to_delete(
    steps: Sequence[int], *, keep: int, is_whole: Callable[[int], bool]
) -> tuple[int, ...]:
    """Return which of ``steps`` (newest first) may go when ``keep`` are to stay.

    At least two whole ones always stay, as far as there are two: the newest alone may turn out
    to be damaged. ``is_whole`` is asked from the newest on and only until two are found.

    Args:
        steps: all step folders, newest first.
        keep: how many to keep; -1 keeps all.
        is_whole: whether a step's files were checked and are all as written.
    """
    if keep < 0:
        return ()
    whole = 0
    for position, step in enumerate(steps):
        whole += is_whole(step)
        if whole == 2:
            return tuple(steps[max(keep, position + 1) :])
    return ()


def _sealed(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"sha256": digest, "content": content}, indent=1, sort_keys=True).encode()
