"""``foundry train`` on a finetuning file, from outside: real examples, a tiny MPT, a CPU."""

import json
import os
from pathlib import Path

import pytest

DATA = os.environ.get("FOUNDRY_TEST_DATA")
SPEC = """
run_name: sft
run_root: {folder}/runs
max_seq_len: 128
model:
  name: mpt_causal_lm
  d_model: 16
  n_heads: 2
  n_layers: 1
  max_seq_len: ${{max_seq_len}}
  vocab_size: 50368
  attn_config: {{attn_impl: torch, alibi: true, attn_uses_sequence_id: {isolates}}}
tokenizer:
  name: {data}/gpt-neox-20b
train_loader: &loader
  name: finetuning
  dataset: &dataset
    hf_name: json
    hf_kwargs: {{data_files: {data}/dolly_hhrlhf_train_small.jsonl}}
    split: train[:100]
    max_seq_len: ${{max_seq_len}}
    allow_pad_trimming: false
    decoder_only_format: true
    packing_ratio: {ratio}
    shuffle: true
  drop_last: true
  num_workers: 8
  pin_memory: false
  prefetch_factor: 2
  persistent_workers: true
  timeout: 0
eval_loader:
  <<: *loader
  dataset:
    <<: *dataset
    split: train[100:120]
    shuffle: false
  drop_last: false
optimizer: {{name: decoupled_adamw, lr: 1.0e-3, betas: [0.9, 0.999], eps: 1.0e-8, weight_decay: 0}}
scheduler: {{name: linear_decay_with_warmup, t_warmup: 0ba, alpha_f: 0}}
algorithms: {{gradient_clipping: {{clipping_type: norm, clipping_threshold: 1.0}}}}
max_duration: 2ba
eval_interval: 1ep
save_interval: 1ba
global_train_batch_size: 4
device_train_microbatch_size: 2
precision: fp32
progress_bar: false
"""
pytestmark = pytest.mark.skipif(DATA is None, reason="FOUNDRY_TEST_DATA is not set")


@pytest.mark.slow
@pytest.mark.parametrize(("isolates", "ratio"), [("false", "null"), ("true", "1.5")])
def test_dolly_trains_and_goes_on(foundry, tmp_path: Path, isolates: str, ratio: str) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(SPEC.format(folder=tmp_path, data=DATA, isolates=isolates, ratio=ratio))
    home = {"FOUNDRY_CACHE": str(tmp_path / "cache"), "HF_DATASETS_CACHE": str(tmp_path / "arrow")}
    checked = foundry("check", str(file), **home)
    assert checked.returncode == 0, checked.stderr
    assert "name: finetuning" in checked.stdout
    assert "persistent_workers and timeout are accepted without effect" in checked.stderr
    done = foundry("train", str(file), OMP_NUM_THREADS="1", **home)
    assert done.returncode == 0, done.stderr
    assert "tokenized 100 examples" in done.stderr
    run = tmp_path / "runs" / "sft"
    record = json.loads((run / "run.json").read_text())
    data = record["data"]["train_loader"]
    (described,) = data["sources"].values()
    assert described["examples"] == 100
    assert 0 < described["kept"] == 100 - sum(described["dropped"].values()) < 100
    assert data["packing"] is None or data["packing"]["ratio"] == 1.5
    assert (data["packing"] is None) == (ratio == "null")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("metrics/eval/LanguageCrossEntropy" in str(line) for line in lines)
    more = foundry("train", str(file), "max_duration=3ba", "autoresume=true", **home)
    assert more.returncode == 0, more.stderr
    assert "tokenized before" in more.stderr
    assert "batch=3/3" in more.stdout + more.stderr


def test_packing_without_isolation_is_refused_with_the_line(foundry, tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(SPEC.format(folder=tmp_path, data=DATA, isolates="false", ratio="auto"))
    refused = foundry("check", str(file))
    assert refused.returncode == 2
    assert "train_loader.dataset.packing_ratio: examples that share a row" in refused.stderr
    assert "attn_uses_sequence_id: true" in refused.stderr


def test_arc_is_converted_with_its_preprocessor(foundry, tmp_path: Path) -> None:
    home = {"HF_DATASETS_CACHE": str(tmp_path / "arrow")}
    arguments = ["data", "convert", "finetuning", "--dataset", "json", "--out_root", "arc"]
    arguments += ["--splits", "train", "--data_files", f"{DATA}/arc_easy_train.jsonl"]
    refused = foundry(*arguments, **home)
    assert refused.returncode == 2
    assert "none is known for 'json'" in refused.stderr
    done = foundry(*arguments, "--preprocessor", "multiple_choice", **home)
    assert done.returncode == 0, done.stderr
    assert "arc/train: 100 documents, 100 rows, in 1 shards" in done.stdout
    index = json.loads((tmp_path / "arc" / "train" / "index.json").read_text())
    assert index["shards"][0]["column_names"] == ["prompt", "response"]
    plugins = foundry("plugins", "--kind", "preprocessor")
    assert "HuggingFaceH4/databricks_dolly_15k" in plugins.stdout
