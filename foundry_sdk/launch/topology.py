"""How many processes a run has, which of them are on this machine, and where they meet."""

import socket
from collections.abc import Mapping
from typing import Final

import attrs

from foundry_sdk.errors import LaunchError

LOOPBACK: Final = "127.0.0.1"


@attrs.frozen(kw_only=True)
class LaunchOptions:
    """What the command line says; None where it says nothing. Names as in LLM Foundry's launcher.

    Attributes:
        nproc: processes on this machine.
        world_size: processes on all machines.
        base_rank: rank of this machine's first process.
        node_rank: number of this machine, from 0.
        master_addr, master_port: where the processes meet; rank 0's machine.
        stdout, stderr: files for the output of local ranks other than 0, with ``{rank}``,
            ``{local_rank}``, ``{node_rank}``, ``{world_size}`` or ``{local_world_size}``.
    """

    nproc: int | None = None
    world_size: int | None = None
    base_rank: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    stdout: str | None = None
    stderr: str | None = None


@attrs.frozen(kw_only=True)
class Topology:
    """The processes of a run as one machine sees them."""

    nproc: int
    world_size: int
    base_rank: int
    node_rank: int
    master_addr: str
    master_port: int

    @property
    def nodes(self) -> int:
        """How many machines there are, when all have equally many processes."""
        return max(1, self.world_size // self.nproc)

    def ranks(self) -> range:
        """Return the global ranks of this machine's processes."""
        return range(self.base_rank, self.base_rank + self.nproc)

    def environment(self, local_rank: int) -> dict[str, str]:
        """Return the variables that tell one process its place, as torchrun sets them."""
        return {
            "RANK": str(self.base_rank + local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.nproc),
            "NODE_RANK": str(self.node_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def started_as_worker(environ: Mapping[str, str]) -> str | None:
    """Return which launcher has already started this process as one of a run's, or None.

    ``RANK`` alone does not tell: schedulers set it to the machine's number. ``accelerate launch``
    sets none of the ranks when it starts a single process.

    Raises:
        LaunchError: ``accelerate launch --cpu`` was asked for several processes. It starts one
            (Accelerate 1.15), which would train alone without a word.
    """
    if "RANK" in environ and "LOCAL_RANK" in environ:
        return "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "another launcher"
    if "ACCELERATE_MIXED_PRECISION" not in environ:
        return None
    if environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in environ:
        raise LaunchError(
            "accelerate launch --cpu has started one process, whatever --num_processes says; use "
            "'foundry train --nproc N', or torchrun"
        )
    return "accelerate launch"


def resolve_topology(
    options: LaunchOptions, environ: Mapping[str, str], *, devices: int
) -> Topology:
    """Fill in what ``options`` leave open, from the environment and then from the machine.

    Args:
        options: what the command line says; it wins.
        environ: ``LOCAL_WORLD_SIZE``, ``WORLD_SIZE``, ``BASE_RANK``, ``NODE_RANK``,
            ``MASTER_ADDR`` and ``MASTER_PORT`` are the defaults.
        devices: accelerators of this machine; 0 on a CPU.

    Raises:
        LaunchError: the numbers do not fit each other or this machine; lists every mistake.
    """
    given = _Given(options, environ)
    nproc = given.number("nproc", "LOCAL_WORLD_SIZE")
    nproc = max(1, devices) if nproc is None else nproc
    world_size = given.number("world_size", "WORLD_SIZE")
    world_size = nproc if world_size is None else world_size
    base_rank = given.number("base_rank", "BASE_RANK")
    node_rank = given.number("node_rank", "NODE_RANK")
    address = options.master_addr or environ.get("MASTER_ADDR")
    port = given.number("master_port", "MASTER_PORT")
    mistakes = given.mistakes or [
        *_size_mistakes(nproc, world_size, devices),
        *_rank_mistakes(nproc, world_size, base_rank, node_rank),
        *(_meeting_mistakes(address, port) if world_size > nproc else ()),
    ]
    if port is not None and not 0 < port < 65536:
        mistakes.append(f"--master-port {port}: expected a port from 1 to 65535")
    if mistakes:
        raise LaunchError("\n".join(mistakes))
    if base_rank is None:
        base_rank = (node_rank or 0) * nproc
    if node_rank is None:
        node_rank = base_rank // nproc
    return Topology(
        nproc=nproc,
        world_size=world_size,
        base_rank=base_rank,
        node_rank=node_rank,
        master_addr=address or LOOPBACK,
        master_port=_checked_port(port, base_rank) if port is not None else _free_port(),
    )


class _Given:
    """Options, and variables behind them, as numbers."""

    def __init__(self, options: LaunchOptions, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self.mistakes: list[str] = []

    def number(self, option: str, variable: str) -> int | None:
        value: int | None = getattr(self._options, option)
        name = f"--{option.replace('_', '-')}"
        if value is None:
            text = self._environ.get(variable)
            if text is None:
                return None
            name = f"environment variable {variable}"
            if not text.strip().lstrip("-").isdigit():
                self.mistakes.append(f"{name}={text!r}: expected a whole number")
                return None
            value = int(text)
        least = 1 if option in {"nproc", "world_size"} else 0
        if value < least:
            self.mistakes.append(f"{name}={value}: expected at least {least}")
        return value


def _size_mistakes(nproc: int, world_size: int, devices: int) -> list[str]:
    mistakes = []
    if world_size < nproc:
        mistakes.append(
            f"--world-size {world_size} is less than --nproc {nproc}: the world is all processes "
            "of all machines"
        )
    if devices and nproc > devices:
        mistakes.append(
            f"--nproc {nproc}: this machine has {devices} GPU(s), and each process needs its own; "
            'for the CPU set CUDA_VISIBLE_DEVICES=""'
        )
    return mistakes


def _rank_mistakes(
    nproc: int, world_size: int, base_rank: int | None, node_rank: int | None
) -> list[str]:
    if world_size <= nproc:
        return [
            f"--{name} {value}: with all {world_size} process(es) on one machine it is 0; "
            "for several machines set --world-size"
            for name, value in (("base-rank", base_rank), ("node-rank", node_rank))
            if value
        ]
    if base_rank is None and node_rank is None:
        return [
            f"--world-size {world_size} with --nproc {nproc} means several machines: "
            "--node-rank (or --base-rank) must say which one this is"
        ]
    mistakes = []
    if (base_rank is None or node_rank is None) and world_size % nproc:
        mistakes.append(
            f"--world-size {world_size} is no multiple of --nproc {nproc}: with machines of "
            "different sizes set both --node-rank and --base-rank"
        )
    first = base_rank if base_rank is not None else (node_rank or 0) * nproc
    if first + nproc > world_size:
        mistakes.append(
            f"ranks {first} to {first + nproc - 1} of this machine are not below "
            f"--world-size {world_size}"
        )
    return mistakes


def _meeting_mistakes(address: str | None, port: int | None) -> list[str]:
    missing = [
        option
        for option, value in (("--master-addr", address), ("--master-port", port))
        if value is None
    ]
    if not missing:
        return []
    return [f"several machines need {' and '.join(missing)}: where rank 0 can be reached"]


def _checked_port(port: int, base_rank: int) -> int:
    """Return ``port``, after a try on rank 0's machine whether it can be listened to."""
    if base_rank == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise LaunchError(
                    f"--master-port {port}: {error.strerror}; choose another one"
                ) from error
    return port


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
