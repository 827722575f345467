"""Processes made by fork: they die for real, and need no seconds of imports."""

import os
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
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


class S3Server:
    """moto behind a layer that fails as it is told: ``fault(method, path)`` returns what to do.

    None = answer; ``"503"``; ``"hang"`` (until ``release``); ``"cut"`` = half a body.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._inner = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.seen: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.release = threading.Event()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path))
        fault = self.fault(method, path)
        if fault == "hang":
            self.release.wait(60)
        if fault in {"503", "hang"}:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = list(self._inner(environ, start))
        return [b"".join(body)[: len(b"".join(body)) // 2]] if fault == "cut" else body

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()


class Bucket:
    """A bucket of its own, with what boto3 needs in the environment."""

    def __init__(self, server: S3Server, name: str) -> None:
        import boto3

        self.server = server
        self.name = name
        self.client = boto3.client("s3", endpoint_url=server.url)
        self.client.create_bucket(Bucket=name)
        self.uri = f"s3://{name}/deep/run"

    def keys(self) -> dict[str, int]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}

    def files(self, step: int) -> set[str]:
        start = f"deep/run/step-{step:06d}/"
        return {key.removeprefix(start) for key in self.keys() if key.startswith(start)}

    def whole(self) -> list[int]:
        """Return the steps that have a manifest."""
        found = [key.split("/")[-2] for key in self.keys() if key.endswith("/manifest.json")]
        return sorted(int(name.removeprefix("step-")) for name in found)

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def flip(self, key: str, position: int) -> None:
        content = bytearray(self.read(key))
        content[position % len(content)] ^= 1
        self.write(key, bytes(content))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("boto3", reason="needs the s3 extra")
    pytest.importorskip("moto.server", reason="needs moto[server]")
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("S3_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3_server.release.clear()
    yield Bucket(s3_server, f"b{uuid.uuid4().hex}")
    s3_server.fault = lambda method, path: None
