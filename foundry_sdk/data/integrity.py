"""Digests of shard files: which are known, and whether a file still has its own."""

import hashlib
import importlib
from pathlib import Path
from typing import Any, Final

import attrs

from foundry_sdk.data.card import DataCard
from foundry_sdk.data.index import INDEX_NAME, MDSIndex, ShardFile, read_index
from foundry_sdk.errors import DataError

OFF: Final = "off"
"""``validate_hash: off`` reads shards without their digest; their size is still checked."""

_FASTEST_FIRST: Final = (
    "xxh3_64", "xxh3_128", "xxh128", "xxh64", "xxh32", "sha1", "sha256", "blake2b", "sha512",
    "blake2s", "sha384", "sha224", "md5",
)  # fmt: skip
_CHUNK: Final = 1 << 22


@attrs.frozen(kw_only=True)
class Problem:
    """One file that is not what its index or card says."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def expected_digest(
    file: ShardFile, card: DataCard | None, validate_hash: str | None
) -> tuple[str, str] | None:
    """Return (hash, hex digest) that ``file`` must have; None where no digest is known.

    Args:
        file: as the index states it.
        card: of the folder; its sha256 counts where the index has no digest.
        validate_hash: name of a hash that must be there; None = the fastest that is; "off".

    Raises:
        DataError: ``validate_hash`` names a hash that the index has not.
    """
    if validate_hash == OFF:
        return None
    known = dict(file.hashes)
    if card is not None and file.basename in card.shards:
        known.setdefault("sha256", card.shards[file.basename])
    if validate_hash is not None:
        if validate_hash not in known:
            raise DataError(
                f"validate_hash: {file.basename} has no {validate_hash} digest, but "
                f"{sorted(known) or 'none at all'}; leave the key out to use what there is"
            )
        return validate_hash, known[validate_hash]
    fastest = next((name for name in _FASTEST_FIRST if name in known), None)
    return None if fastest is None else (fastest, known[fastest])


def check_file(path: Path, file: ShardFile, expected: tuple[str, str] | None) -> Problem | None:
    """Return what is wrong with the file at ``path``; None = it is whole.

    The size is always compared, so that a file cut short is found without any digest.
    """
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return Problem(path=path, what=f"has {size} bytes, the index says {file.bytes}")
        if expected is None:
            return None
        name, digest = expected
        found = _digest(path, name)
    except FileNotFoundError:
        return Problem(path=path, what="is missing")
    if found != digest:
        return Problem(
            path=path, what=f"is damaged: its {name} is {found}, the index says {digest}"
        )
    return None


def verify_folder(folder: Path) -> tuple[list[Problem], int]:
    """Check every shard file of a local folder against its card and index.

    Returns:
        The problems, and how many files were compared with a digest.

    Raises:
        DataError: index or card cannot be read, or they contradict each other.
    """
    index, card = read_index(folder / INDEX_NAME), DataCard.read(folder)
    problems: list[Problem] = []
    compared = 0
    for shard in index.shards:
        for file in (shard.raw, shard.zip):
            if file is None or (file is not shard.stored and not (folder / file.basename).exists()):
                continue
            expected = expected_digest(file, card, None)
            compared += expected is not None
            problem = check_file(folder / file.basename, file, expected)
            if problem is not None:
                problems.append(problem)
    problems.extend(_card_and_index(index, card, folder))
    return problems, compared


def _card_and_index(index: MDSIndex, card: DataCard | None, folder: Path) -> list[Problem]:
    if card is None:
        return []
    problems = []
    stored = {shard.stored.basename: shard.stored for shard in index.shards}
    if set(stored) != set(card.shards):
        odd = sorted(set(stored) ^ set(card.shards))
        problems.append(Problem(path=folder, what=f"card and index differ in the shards {odd}"))
    if index.samples != card.samples:
        what = f"the index counts {index.samples} samples, the card {card.samples}"
        problems.append(Problem(path=folder, what=what))
    for name, file in stored.items():
        of_index = file.hashes.get("sha256")
        if of_index is not None and of_index != card.shards.get(name, of_index):
            what = f"its sha256 is {of_index} in the index, {card.shards[name]} in the card"
            problems.append(Problem(path=folder / name, what=what))
    return problems


def _digest(path: Path, name: str) -> str:
    state = _hasher(name)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    digest: str = state.hexdigest()
    return digest


def _hasher(name: str) -> Any:  # noqa: ANN401
    makers: dict[str, Any] = vars(importlib.import_module("xxhash")) if "xxh" in name else {}
    if name in makers:
        return makers[name]()
    if name in hashlib.algorithms_available and not name.startswith("shake"):
        return hashlib.new(name, usedforsecurity=False)
    raise DataError(f"validate_hash: unknown hash {name!r}; known are {sorted(_FASTEST_FIRST)}")
