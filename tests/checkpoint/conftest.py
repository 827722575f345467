"""Processes made by fork: they die for real, and need no seconds of imports."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from foundry_sdk import faultpoints


class GlooRanks:
    """Ranks of a real process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def barrier(self) -> None:
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


def in_fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child; return its exit code, or minus the signal that killed it."""
    return _wait(_fork(work))


def on_ranks(world_size: int, work: Callable[[GlooRanks], None]) -> list[int]:
    """Run ``work`` on gloo ranks; return their exit codes as ``in_fork`` does."""
    with tempfile.TemporaryDirectory() as folder:

        def start(rank: int) -> None:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=60),
            )
            work(GlooRanks())
            dist.barrier()
            dist.destroy_process_group()

        children = [_fork(lambda rank=rank: start(rank)) for rank in range(world_size)]
        return [_wait(child) for child in children]


def _fork(work: Callable[[], None]) -> int:
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is initialised in this process, and no forked child can use it")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(120)
        torch.set_num_threads(1)
        faultpoints._reached.clear()  # what the parent's tests reached is not this process's
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - a child never returns into pytest
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.fixture
def forked() -> Callable[[Callable[[], None]], int]:
    return in_fork


@pytest.fixture
def ranks() -> Callable[[int, Callable[[GlooRanks], None]], list[int]]:
    return on_ranks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"
