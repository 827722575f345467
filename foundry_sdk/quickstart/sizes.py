"""How large the quickstart's parts are, and the YAML of its two runs."""

from string import Template
from typing import Final

import attrs


@attrs.frozen(kw_only=True)
class Sizes:
    """What a quickstart trains, and for how long.

    Attributes:
        text_bytes: of source code.
        steps: optimizer steps of pretraining.
        console_steps: steps between printed lines.
        epochs: of finetuning.
        pair_characters: prompt and response of a longer pair are left out.
        pair_tokens: and what is longer than this is cut.
        pairs_batch: pairs of an optimizer step.
    """

    text_bytes: int
    steps: int
    console_steps: int
    epochs: int
    vocab_size: int = 2048
    sequence_length: int = 256
    global_batch: int = 8
    pair_characters: int = 400
    pair_tokens: int = 192
    pairs_batch: int = 8

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.global_batch * self.sequence_length


# Measured on two CPU cores: 0.15 s a step of pretraining, half of that one of finetuning.
FULL: Final = Sizes(text_bytes=4_000_000, steps=480, console_steps=80, epochs=2)
QUICK: Final = Sizes(text_bytes=2_000_000, steps=80, console_steps=40, epochs=2)

_PRETRAIN: Final = Template(
    """\
# Pretrains a small MPT on the source of Python's standard library.
#   foundry check pretrain.yaml     what is meant, in full
#   foundry plan pretrain.yaml      batch sizes, tokens, memory
#   foundry train pretrain.yaml     trains; `optimizer.lr=1e-3` and the like change a value
variables:
  root: .
  sequence_length: $sequence_length

run_name: quickstart
run_root: $${variables.root}/runs
seed: 17
precision: fp32
max_seq_len: $${variables.sequence_length}

model:
  name: mpt_causal_lm
  d_model: 128
  n_heads: 4
  n_layers: 4
  max_seq_len: $${variables.sequence_length}
  vocab_size: $vocab_size
  learned_pos_emb: false
  no_bias: true
  attn_config:
    attn_impl: torch
    alibi: true            # and no bias: exported as transformers' MptForCausalLM

tokenizer:
  name: $${variables.root}/tokenizer

train_loader:
  name: text
  dataset:
    local: $${variables.root}/data
    split: train
    shuffle: true
  drop_last: true
  num_workers: 1

eval_loader:
  name: text
  dataset:
    local: $${variables.root}/data
    split: val
  drop_last: false
  num_workers: 0

optimizer:
  name: decoupled_adamw
  lr: 5.0e-3
  betas: [0.9, 0.95]
  weight_decay: 1.0e-5

scheduler:
  name: cosine_with_warmup
  t_warmup: 0.05dur
  alpha_f: 0.1

algorithms:
  gradient_clipping:
    clipping_type: norm
    clipping_threshold: 1.0

callbacks:
  speed_monitor: {window_size: 10}
  lr_monitor: {}

max_duration: ${steps}ba
global_train_batch_size: $global_batch
device_train_microbatch_size: $global_batch
device_eval_batch_size: $global_batch
eval_interval: 0.5dur
eval_subset_num_batches: 20
save_interval: 0.5dur
save_num_checkpoints_to_keep: 2
console_log_interval: ${console_steps}ba
"""
)

_FINETUNE: Final = Template(
    """\
# Finetunes the exported model: a docstring is the prompt, the function the response.
#   foundry data check finetune.yaml    what would be learned
#   foundry train finetune.yaml         trains
variables:
  root: .

run_name: functions
run_root: $${variables.root}/runs
seed: 17
precision: fp32
max_seq_len: $pair_tokens

model:
  name: hf_causal_lm
  pretrained_model_name_or_path: $${variables.root}/model

tokenizer:
  name: $${variables.root}/tokenizer

train_loader:
  name: finetuning
  dataset:
    hf_name: json
    hf_kwargs:
      data_files: $${variables.root}/pairs/train.jsonl
    split: train           # what `datasets` calls the only split of a file
    preprocessing_fn: {prompt: prompt, response: response}
    cache_dir: $${variables.root}/pairs/tokenized
    shuffle: true
    pad_to_longest: true
  drop_last: true

eval_loader:
  name: finetuning
  dataset:
    hf_name: json
    hf_kwargs:
      data_files: $${variables.root}/pairs/val.jsonl
    split: train
    preprocessing_fn: {prompt: prompt, response: response}
    cache_dir: $${variables.root}/pairs/tokenized
    pad_to_longest: true

optimizer:
  name: decoupled_adamw
  lr: 2.0e-3
  betas: [0.9, 0.95]
  weight_decay: 0.0

scheduler:
  name: linear_decay_with_warmup
  t_warmup: 0.05dur
  alpha_f: 0.0

algorithms:
  gradient_clipping:
    clipping_type: norm
    clipping_threshold: 1.0

callbacks:
  lr_monitor: {}

max_duration: ${epochs}ep
global_train_batch_size: $pairs_batch
device_train_microbatch_size: $pairs_batch
device_eval_batch_size: $pairs_batch
eval_first: true           # how well it does before the first step
eval_interval: 1ep
save_interval: ${epochs}ep
console_log_interval: 1ep
"""
)


def pretrain_yaml(sizes: Sizes) -> str:
    """Return the YAML of pretraining, with paths relative to ``variables.root``."""
    return _PRETRAIN.substitute(
        sequence_length=sizes.sequence_length,
        vocab_size=sizes.vocab_size,
        steps=sizes.steps,
        global_batch=sizes.global_batch,
        console_steps=sizes.console_steps,
    )


def finetune_yaml(sizes: Sizes) -> str:
    """Return the YAML of finetuning, with paths relative to ``variables.root``."""
    return _FINETUNE.substitute(
        pair_tokens=sizes.pair_tokens, pairs_batch=sizes.pairs_batch, epochs=sizes.epochs
    )
