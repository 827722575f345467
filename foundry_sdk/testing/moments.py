"""Events made by hand, so that a callback is tested without a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from foundry_sdk.events import RunStarted, StepFinished
from foundry_sdk.units import Duration


@attrs.frozen(kw_only=True)
class TableProbe:
    """Answers what a callback asks of the model from tables.

    Attributes:
        parameters, gradients, optimizer: norms by name, as in ``Probe``.
    """

    parameters: Mapping[str, float]
    gradients: Mapping[str, float]
    optimizer: Mapping[str, float]

    def parameter_norms(self) -> Mapping[str, float]:
        """Return the table."""
        return self.parameters

    def gradient_norms(self) -> Mapping[str, float]:
        """Return the table."""
        return self.gradients

    def optimizer_norms(self) -> Mapping[str, float]:
        """Return the table."""
        return self.optimizer

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Return each prompt in capitals, cut to ``max_new_tokens`` characters."""
        del temperature, top_k, top_p, seed
        return [prompt.upper()[:max_new_tokens] for prompt in prompts]


def tiny_run(**changes: Any) -> RunStarted:  # noqa: ANN401 - fields of RunStarted
    """Return the start of a run of 100 steps on a CPU; ``changes`` are fields of ``RunStarted``."""
    probe = TableProbe(
        parameters={"embed.weight": 3.0, "blocks.0.weight": 4.0},
        gradients={"embed.weight": 0.3, "blocks.0.weight": 0.4},
        optimizer={"moment/embed.weight": 0.1, "moment/blocks.0.weight": 0.2},
    )
    fields: dict[str, Any] = {
        "run_name": "tiny",
        "run_dir": None,
        "rank": 0,
        "world_size": 1,
        "device": "cpu",
        "device_name": "tiny",
        "precision": "fp32",
        "max_duration": Duration.parse("100ba"),
        "total_steps": 100,
        "step": 0,
        "global_batch": 4,
        "microbatch": 2,
        "sequence_length": 10,
        "parameters": 1000,
        "flops_per_token": 6000,
        "resolved_spec": {},
        "choices": {},
        "probe": probe,
    }
    return RunStarted(**fields | changes)


def tiny_step(step: int, **changes: Any) -> StepFinished:  # noqa: ANN401 - fields of StepFinished
    """Return the end of a step of 4 sequences, 40 tokens and half a second; epochs of 10 steps."""
    fields: dict[str, Any] = {
        "step": step,
        "epoch": step // 10,
        "batch_in_epoch": step % 10,
        "samples": 4 * step,
        "tokens": 40 * step,
        "step_samples": 4,
        "step_tokens": 40,
        "step_labels": 36,
        "loss": 2.0 + 1.0 / step,
        "gradient_norm": 1.0,
        "lrs": (1e-3,),
        "optimizer": "AdamW",
        "microbatch": 2,
        "seconds": 0.5 * step,
        "step_seconds": 0.5,
        "data_seconds": 0.1,
    }
    return StepFinished(**fields | changes)
