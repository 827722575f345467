"""What a checkpoint needs of the other processes, and how all of them fail alike."""

from collections.abc import Callable
from typing import Any, Final, Protocol

from foundry_sdk.checkpoint.files import explain
from foundry_sdk.errors import (
    CheckpointError,
    CheckpointWriteError,
    FoundryError,
    LockedRunError,
    NoSpaceError,
    RemoteStoreError,
)


class Ranks(Protocol):
    """This process among its peers. Every method is called on every rank, in the same order."""

    rank: int
    world_size: int

    def barrier(self) -> None:
        """Wait for all ranks."""

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
        """Return every rank's ``value`` (JSON), in rank order, on every rank."""

    def broadcast(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        """Return rank 0's ``value`` (JSON) on every rank."""


class SoloRanks:
    """One process that has no peers."""

    rank: int = 0
    world_size: int = 1

    def barrier(self) -> None:
        """Return at once."""

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
        """Return ``[value]``."""
        return [value]

    def broadcast(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        """Return ``value``."""
        return value


_KINDS: Final[dict[str, type[FoundryError]]] = {
    kind.__name__: kind
    for kind in (
        CheckpointError,
        CheckpointWriteError,
        NoSpaceError,
        RemoteStoreError,
        LockedRunError,
    )
}


def on_every_rank(
    ranks: Ranks, doing: str, action: Callable[[], Any], *, reading: bool = False
) -> list[Any]:
    """Run ``action`` on every rank; return all results (JSON), or raise the same on every rank.

    Raises:
        CheckpointError: ``action`` failed on a rank, with the first one's reason.
    """
    return [_value(outcome) for outcome in ranks.gather(_outcome(doing, action, reading))]


def on_first_rank(
    ranks: Ranks, doing: str, action: Callable[[], Any], *, reading: bool = False
) -> Any:  # noqa: ANN401 - any JSON value
    """Run ``action`` on rank 0; return its result (JSON) or raise its error, on every rank.

    Raises:
        CheckpointError: ``action`` failed.
    """
    return _value(ranks.broadcast(_outcome(doing, action, reading) if ranks.rank == 0 else None))


def _outcome(doing: str, action: Callable[[], Any], reading: bool) -> dict[str, Any]:
    """Run ``action`` and write down what came of it, so that peers can be told."""
    try:
        return {"value": action()}
    except FoundryError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        told = CheckpointError(f"{doing}: {error}") if reading else explain(error, doing)
        return {"error": type(told).__name__, "message": str(told)}


def _value(outcome: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    if "error" in outcome:
        raise _KINDS.get(outcome["error"], CheckpointError)(outcome["message"])
    return outcome["value"]
