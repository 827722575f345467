"""Starts ``hf_worker.py`` on ranks, and makes what its runs need."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("hf_worker.py")


def tokenizer_in(folder: Path) -> str:
    """Save a tokenizer of 60 words in ``folder``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(59)} | {"<eos>": 59}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def start(runs: list[dict[str, Any]], world_size: int) -> None:
    with_ports = [arguments | {"port": free_port()} for arguments in runs]
    processes = []
    for rank in range(world_size):
        own = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
        own["OMP_NUM_THREADS"] = "1"
        if world_size > 1:
            own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            own |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(with_ports)],
                env=own,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, told


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
