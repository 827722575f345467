"""What the drill trains on where it is given nothing: a tiny model, and words drawn at random."""

import json
import random
from pathlib import Path
from typing import Final

import attrs

_WORDS: Final = 63
_DOCUMENTS: Final = 64
_WORDS_EACH: Final = 50
LENGTH: Final = 16

_SPEC: Final = """\
run_root: {folder}/runs
max_seq_len: {length}
model:
  name: mpt_causal_lm
  d_model: 16
  n_heads: 2
  n_layers: 2
  max_seq_len: {length}
  vocab_size: {vocabulary}
  emb_pdrop: 0.1
  attn_config: {{attn_impl: torch}}
loss: {{name: torch_crossentropy}}
tokenizer: {{name: {folder}/tokenizer}}
train_loader:
  name: text
  dataset:
    remote: {folder}/data
    split: train
    shuffle: true
    shuffle_seed: 1
    max_seq_len: {length}
  drop_last: true
  num_workers: 0
optimizer: {{name: decoupled_adamw, lr: 0.01}}
scheduler: {{name: cosine_with_warmup, t_warmup: 2ba}}
max_duration: {steps}ba
eval_interval: 1000ba
save_interval: {save}ba
save_num_checkpoints_to_keep: 2
global_train_batch_size: 8
device_train_microbatch_size: 4
precision: fp32
"""


@attrs.frozen(kw_only=True)
class Material:
    """Files of a tiny run: text and tokenizer are there, shards come with a conversion.

    Attributes:
        folder: holds all of it.
        spec: file of the run.
        text: file of documents, JSON Lines.
        tokenizer: folder.
        data: folder that the spec takes its shards from.
    """

    folder: Path
    spec: Path
    text: Path
    tokenizer: Path
    data: Path

    def conversion(self, out: Path) -> list[str]:
        """Return the arguments of ``foundry`` that make the shards in ``out``."""
        words = ["data", "convert", "json", "--path", str(self.text), "--out-root", str(out)]
        words += ["--concat-tokens", str(LENGTH), "--tokenizer", str(self.tokenizer)]
        return [
            *words,
            "--eos-text",
            "<eos>",
            "--compression",
            "zstd",
            "--num-workers",
            "1",
            "--resume",
        ]


def write_material(folder: Path, *, steps: int, save_every: int) -> Material:
    """Write spec, text and tokenizer into ``folder``."""
    _write_tokenizer(folder / "tokenizer")
    generator = random.Random(0)  # noqa: S311 - words, not secrets
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(_DOCUMENTS):
            numbers = (int(generator.expovariate(0.1)) for _ in range(_WORDS_EACH))
            text = " ".join(f"w{min(_WORDS - 1, number)}" for number in numbers)
            file.write(json.dumps({"text": text}) + "\n")
    spec = folder / "spec.yaml"
    values = {"folder": folder, "length": LENGTH, "vocabulary": _WORDS + 1, "steps": steps}
    spec.write_text(_SPEC.format(**values, save=save_every), encoding="utf-8")
    return Material(
        folder=folder,
        spec=spec,
        text=folder / "text.jsonl",
        tokenizer=folder / "tokenizer",
        data=folder / "data",
    )


def _write_tokenizer(folder: Path) -> None:
    """Write what ``save_pretrained`` would for a tokenizer of whole words, without its imports."""
    vocabulary = {f"w{number}": number for number in range(_WORDS)} | {"<eos>": _WORDS}
    added = {"id": _WORDS, "content": "<eos>", "special": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    folder.mkdir(parents=True)
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
