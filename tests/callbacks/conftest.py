"""Events made by hand, and a model that answers from a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import pytest

from foundry_sdk.events import EvaluationFinished, GradientsReady, RunStarted, StepFinished
from foundry_sdk.units import Duration


@attrs.define
class TableProbe:
    """Answers with what it was given, and counts the questions."""

    parameters: Mapping[str, float] = attrs.field(factory=dict)
    gradients: Mapping[str, float] = attrs.field(factory=dict)
    optimizer: Mapping[str, float] = attrs.field(factory=dict)
    calls: list[dict[str, Any]] = attrs.field(factory=list)

    def parameter_norms(self) -> Mapping[str, float]:
        return self.parameters

    def gradient_norms(self) -> Mapping[str, float]:
        self.calls.append({})
        return self.gradients

    def optimizer_norms(self) -> Mapping[str, float]:
        return self.optimizer

    def generate(self, prompts: Sequence[str], **options: Any) -> list[str]:
        self.calls.append({"prompts": tuple(prompts), **options})
        return [prompt.upper() for prompt in prompts]


@pytest.fixture
def make_run() -> Callable[..., RunStarted]:
    def make(**changes: Any) -> RunStarted:
        fields: dict[str, Any] = {
            "run_name": "a", "run_dir": None, "rank": 0, "world_size": 2, "device": "cpu",
            "device_name": "x86_64", "precision": "amp_bf16",
            "max_duration": Duration.parse("100ba"), "total_steps": 100, "step": 0,
            "global_batch": 4, "microbatch": 2, "sequence_length": 10, "parameters": 1000,
            "flops_per_token": 6000, "resolved_spec": {}, "choices": {}, "probe": TableProbe(),
        }  # fmt: skip
        return RunStarted(**fields | changes)

    return make


@pytest.fixture
def make_step() -> Callable[..., StepFinished]:
    """A step of 4 samples, 40 tokens, 0.5 s, of which 0.1 s is waiting; epochs of 10 steps."""

    def make(step: int, **changes: Any) -> StepFinished:
        fields: dict[str, Any] = {
            "step": step, "epoch": step // 10, "batch_in_epoch": step % 10, "samples": 4 * step,
            "tokens": 40 * step, "step_samples": 4, "step_tokens": 40, "step_labels": 36,
            "loss": 2.0, "gradient_norm": 1.0, "lrs": (1e-3, 2e-3), "optimizer": "DecoupledAdamW",
            "microbatch": 2, "seconds": 0.5 * step, "step_seconds": 0.5, "data_seconds": 0.1,
        }  # fmt: skip
        return StepFinished(**fields | changes)

    return make


@pytest.fixture
def make_gradients() -> Callable[..., GradientsReady]:
    def make(step: int, **changes: Any) -> GradientsReady:
        fields: dict[str, Any] = {
            "step": step, "loss": 2.0, "gradient_norm": 1.0, "sample_ids": None,
            "last_checkpoint": None,
        }  # fmt: skip
        return GradientsReady(**fields | changes)

    return make


@pytest.fixture
def make_evaluation() -> Callable[..., EvaluationFinished]:
    def make(step: int, value: float, **changes: Any) -> EvaluationFinished:
        fields: dict[str, Any] = {
            "step": step, "epoch": step // 10, "label": "eval", "seconds": 3.0,
            "metrics": {"metrics/eval/LanguageCrossEntropy": value},
        }  # fmt: skip
        return EvaluationFinished(**fields | changes)

    return make
