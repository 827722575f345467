"""Callbacks that LLM Foundry has and this SDK has not, with what to do instead."""

from collections.abc import Mapping
from typing import Final

NOT_SUPPORTED: Final[Mapping[str, str]] = {
    "async_eval": "evaluation runs inside the run; use eval_loader and eval_interval",
    "curriculum_learning": "a run has one train_loader; start a second run from its checkpoint "
    "with load_path",
    "dataset_swap": "a run has one train_loader; start a second run from its checkpoint with "
    "load_path",
    "env_logging": "remove it; run.json in the run's folder holds versions, host, devices and "
    "git commit",
    "eval_output_logging": "use generate_callback to see what the model writes",
    "fdiff_metrics": "differences of metrics.jsonl between steps say the same",
    "global_lr_scaling": "set optimizer.lr and optimizer.weight_decay to the scaled values",
    "hf_checkpointer": "export a checkpoint with `foundry export`",
    "kill_loss_spike": "use loss_spike_guard, with policy skip or stop",
    "layer_freezing": "freezing layers is not supported",
    "load_checkpoint": "use the top-level load_path and load_weights_only",
    "loss_perp_v_len": "loss by position is not supported",
    "mbmoe_tok_per_expert": "mixture-of-experts models are not supported",
    "memory_snapshot": "use memory_monitor for the numbers",
    "mono_checkpoint_saver": "a checkpoint is sharded; export it with `foundry export`",
    "oom_observer": "remove it; an out-of-memory error is reported with the memory that was in use",
    "system_metrics_monitor": "use memory_monitor and speed_monitor",
}
"""Name of a callback → what to do instead, for the error that names it."""
