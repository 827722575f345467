"""``foundry train``: a run on this machine's devices, or as one of several machines."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foundry_sdk.errors import FoundryError, LaunchError, WorkerFailedError

if TYPE_CHECKING:
    from foundry_sdk.finetuner import Finetuner
    from foundry_sdk.launch.topology import LaunchOptions, Topology
    from foundry_sdk.pretrainer import Pretrainer
    from foundry_sdk.training.run import RunResult


def _option(*names: str, text: str) -> Any:  # noqa: ANN401 - typer's
    """Return an option that says where its default is from in its own words."""
    return typer.Option(*names, help=text, show_default=False)


_Nproc = Annotated[
    int | None,
    _option(
        "--nproc",
        "-n",
        text="Processes on this machine; by default LOCAL_WORLD_SIZE, else one per GPU.",
    ),
]
_WorldSize = Annotated[
    int | None,
    _option(
        "--world-size", "--world_size", text="Processes on all machines; by default WORLD_SIZE."
    ),
]
_NodeRank = Annotated[
    int | None,
    _option(
        "--node-rank", "--node_rank", text="Number of this machine from 0; by default NODE_RANK."
    ),
]
_BaseRank = Annotated[
    int | None,
    _option(
        "--base-rank",
        "--base_rank",
        text="Rank of this machine's first process, where machines differ in size; BASE_RANK.",
    ),
]
_MasterAddr = Annotated[
    str | None,
    _option(
        "--master-addr",
        "--master_addr",
        text="Address of the machine with rank 0; by default MASTER_ADDR.",
    ),
]
_MasterPort = Annotated[
    int | None,
    _option("--master-port", "--master_port", text="A free port of it; by default MASTER_PORT."),
]
_Stdout = Annotated[
    str | None,
    _option("--stdout", text="File for the output of local ranks other than 0: 'out-{rank}.txt'."),
]
_Stderr = Annotated[str | None, _option("--stderr", text="The same for their error output.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    spec: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Such as optimizer.lr=1e-4.", show_default=False),
    ] = None,
    *,
    nproc: _Nproc = None,
    world_size: _WorldSize = None,
    node_rank: _NodeRank = None,
    base_rank: _BaseRank = None,
    master_addr: _MasterAddr = None,
    master_port: _MasterPort = None,
    stdout: _Stdout = None,
    stderr: _Stderr = None,
) -> None:
    r"""Train a model as the spec says, on all GPUs of this machine or on its CPU.

    Exit codes: 0 done, 1 the run failed, 2 the input must be changed, 75 no room
    for a checkpoint, 76 the device is too small, 77 a process hung (see
    dist_timeout), 143 stopped by SIGTERM after saving (128 + n for signal n).
    A second signal ends everything at once.

    Examples:
      foundry train pretrain.yaml
      foundry train pretrain.yaml optimizer.lr=3e-4 autoresume=true
      foundry train pretrain.yaml --nproc 2
      foundry train pretrain.yaml --world-size 16 --node-rank 1 \
        --master-addr 10.0.0.1 --master-port 29500
      torchrun --nproc-per-node 8 -m foundry_sdk train pretrain.yaml
    """
    from foundry_sdk.cli.without_secrets import WithoutSecrets
    from foundry_sdk.finetuner import trainer_from_yaml
    from foundry_sdk.launch.devices import device_count
    from foundry_sdk.launch.topology import LaunchOptions, resolve_topology, started_as_worker

    # OpenMP's threads spin while they wait; beside other processes that makes a CPU run many times
    # slower. Read when torch is loaded, and inherited by the workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The SDK's own lines from the level that the spec names; warnings of everybody else.
    handler = logging.StreamHandler()
    handler.setFormatter(WithoutSecrets("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    options = LaunchOptions(
        nproc=nproc,
        world_size=world_size,
        base_rank=base_rank,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        stdout=stdout,
        stderr=stderr,
    )
    trainer = trainer_from_yaml(spec, overrides or ())
    launcher = started_as_worker(os.environ)
    if launcher is not None:
        _check_place(options, launcher)
        _run_here(trainer, say_notices=os.environ.get("RANK", "0") == "0")
        return
    devices = device_count()
    topology = resolve_topology(options, os.environ, devices=devices)
    trainer.plan(topology.world_size)
    if topology.world_size == 1:
        _refuse_files(options)
        _run_here(trainer, say_notices=True)
        return
    trainer.check()
    _say(trainer.notices)
    _run_workers(spec, overrides or [], topology, options, on="GPU(s)" if devices else "the CPU")


def _run_here(trainer: "Pretrainer | Finetuner", *, say_notices: bool) -> None:
    """Train in this process; a launcher of ours is told of a failure and is the one to print it."""
    from foundry_sdk.launch.cause import write_cause

    if say_notices and not _has_launcher():
        _say(trainer.notices)
    try:
        result = trainer.fit()
    except BaseException as error:
        if isinstance(error, Exception) and write_cause(error, os.environ):
            code = error.exit_code if isinstance(error, FoundryError) else 1
            raise typer.Exit(code) from error
        raise
    raise typer.Exit(_exit_code(result))


def _run_workers(
    spec: Path, overrides: list[str], topology: "Topology", options: "LaunchOptions", *, on: str
) -> None:
    from foundry_sdk.launch.launcher import launch

    typer.echo(
        f"starting {topology.nproc} process(es) on {on}: ranks {topology.base_rank} to "
        f"{topology.ranks()[-1]} of {topology.world_size}, meeting at "
        f"{topology.master_addr}:{topology.master_port}",
        err=True,
    )
    # As in this process, so in the workers: modules of the working directory or not.
    alike = () if {"", str(Path.cwd())} & set(sys.path) else ("-P",)
    command = [sys.executable, *alike, "-m", "foundry_sdk", "train", str(spec), *overrides]
    result = launch(command, topology, options)
    if result.message is not None:
        error = WorkerFailedError(result.message, exit_code=result.exit_code)
        if result.details is not None:
            error.add_note(result.details)  # shown by --debug
        raise error
    raise typer.Exit(result.exit_code)


def _exit_code(result: "RunResult") -> int:
    """Return 0, or 128 + n where signal n ended the run; the same on every rank."""
    name = (result.stopped_by or "").removeprefix("signal ")
    known = signal.Signals.__members__.get(name)
    return 0 if known is None else 128 + known


def _check_place(options: "LaunchOptions", launcher: str) -> None:
    """Refuse options that lay processes out where another program has done so.

    ``accelerate launch`` may have started one process on a machine with several GPUs; say so.

    Raises:
        LaunchError: one is given.
    """
    import attrs

    given = [f"--{n.replace('_', '-')}" for n, v in attrs.asdict(options).items() if v is not None]
    if given:
        raise LaunchError(
            f"{', '.join(given)}: this process was started by {launcher}, which has already said "
            "how many there are; leave the option(s) out"
        )
    if "RANK" not in os.environ:
        typer.echo(f"started by {launcher} as the only process", err=True)


def _refuse_files(options: "LaunchOptions") -> None:
    """Refuse files for the output of ranks that do not exist.

    Raises:
        LaunchError: one is given.
    """
    for name in ("stdout", "stderr"):
        if getattr(options, name) is not None:
            raise LaunchError(
                f"--{name}: is for the output of other ranks than 0, and there is one process; "
                f"redirect it with > instead"
            )


def _has_launcher() -> bool:
    from foundry_sdk.launch.cause import VARIABLE

    return VARIABLE in os.environ


def _say(notices: tuple[str, ...]) -> None:
    from foundry_sdk.runs.redact import redact_text

    for notice in notices:
        typer.echo(f"notice: {redact_text(notice)}", err=True)
