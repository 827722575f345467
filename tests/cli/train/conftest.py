"""A tiny MPT on converted text, and ``foundry`` as processes beside it."""

import json
import os
import random
import subprocess
import sys

import pytest

CLEAN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")

SPEC = """
run_name: run
run_root: {folder}/runs
max_seq_len: 16
model:
  name: mpt_causal_lm
  d_model: 16
  n_heads: 2
  n_layers: 2
  max_seq_len: 16
  vocab_size: 64
  attn_config: {{attn_impl: torch}}
  emb_pdrop: 0.1
loss: {{name: torch_crossentropy}}
tokenizer: {{name: {folder}/tokenizer}}
train_loader:
  name: text
  dataset:
    local: {folder}/data
    split: train
    shuffle: true
    shuffle_seed: 1
    max_seq_len: 16
  drop_last: true
  num_workers: {workers}
optimizer: {{name: decoupled_adamw, lr: 0.01}}
scheduler: {{name: cosine_with_warmup, t_warmup: 2ba}}
max_duration: {duration}
eval_interval: 1000ba
save_interval: 3ba
save_num_checkpoints_to_keep: 2
global_train_batch_size: 8
device_train_microbatch_size: 4
precision: fp32
progress_bar: false
"""


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A tokenizer of 64 words and 200 samples of 16 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("material")
    vocabulary = {f"w{i}": i for i in range(63)} | {"<eos>": 63}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(
        folder / "tokenizer"
    )
    generator = random.Random(0)  # noqa: S311
    with (folder / "docs.jsonl").open("w") as file:
        for _ in range(64):
            words = (f"w{min(62, int(generator.expovariate(0.1)))}" for _ in range(50))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    convert = ("data", "convert", "json", "--path", folder / "docs.jsonl", "--out-root")
    form = ("--concat-tokens", 16, "--tokenizer", folder / "tokenizer", "--eos-text", "<eos>")
    done = run_foundry(*convert, folder / "data", *form)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def spec(material, tmp_path):
    """Return a function that writes the spec with a run folder of its own."""

    def write(duration="9ba", workers=0):
        for name in ("tokenizer", "data"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(material / name)
        text = SPEC.format(folder=tmp_path, duration=duration, workers=workers)
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        return path

    return write


def clean_environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name not in CLEAN}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


def run_foundry(*arguments, **extra):
    return subprocess.run(
        [sys.executable, "-m", "foundry_sdk", *map(str, arguments)],
        env=clean_environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def environment():
    """Return a function that makes the variables of a process that no launcher has started."""
    return clean_environment


@pytest.fixture
def foundry():
    """Return a function that runs ``foundry ARGUMENTS`` to its end."""
    return run_foundry


@pytest.fixture
def start():
    """Return a function that starts ``foundry ARGUMENTS``."""

    def start_foundry(*arguments, **extra):
        return subprocess.Popen(
            [sys.executable, "-m", "foundry_sdk", *map(str, arguments)],
            env=clean_environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_foundry


@pytest.fixture
def losses():
    """Return a function that reads each logged loss of a run by step, exactly as written."""

    def read(run):
        found = {}
        for line in (run / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            if "loss/train/total" in values:
                assert values["step"] not in found
                found[values["step"]] = values["loss/train/total"]
        return found

    return read
