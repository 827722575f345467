"""How large the quickstart's parts are, and the YAML of its run."""

from string import Template
from typing import Final

import attrs


@attrs.frozen(kw_only=True)
class Sizes:
    """What a quickstart trains, and for how long.

    Attributes:
        text_bytes: of source code.
        steps: optimizer steps.
        console_steps: steps between printed lines.
    """

    text_bytes: int
    steps: int
    console_steps: int
    vocab_size: int = 2048
    sequence_length: int = 256
    global_batch: int = 8

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.global_batch * self.sequence_length


# Measured on two CPU cores: 0.15 s a step.
FULL: Final = Sizes(text_bytes=4_000_000, steps=480, console_steps=80)
QUICK: Final = Sizes(text_bytes=1_000_000, steps=80, console_steps=40)

_YAML: Final = Template(
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


def run_yaml(sizes: Sizes) -> str:
    """Return the YAML of the run, with paths relative to ``variables.root``."""
    return _YAML.substitute(
        sequence_length=sizes.sequence_length,
        vocab_size=sizes.vocab_size,
        steps=sizes.steps,
        global_batch=sizes.global_batch,
        console_steps=sizes.console_steps,
    )
