"""Runs made of a folder's files alone."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.runs.record import RunRecord

SPEC = {
    "model": {"name": "mpt_causal_lm", "d_model": 64, "attn_config": {"attn_impl": "torch"}},
    "optimizer": {"name": "decoupled_adamw", "lr": 1e-3, "betas": [0.9, 0.95]},
    "eval_loader": [{"label": "c4", "dataset": {"split": "val"}}],
    "max_duration": "10ba",
    "seed": 17,
}


@pytest.fixture
def small_spec() -> dict[str, Any]:
    return dict(SPEC)


MakeRecord = Callable[..., Path]


@pytest.fixture
def make_record(tmp_path: Path) -> MakeRecord:
    """Make a run of ten steps whose loss at step s is 5 / s, unless told otherwise."""

    def make(
        name: str,
        *,
        spec: Mapping[str, Any] = SPEC,
        losses: Mapping[int, float] | None = None,
        status: str | None = "finished",
        reason: str | None = None,
        release: bool = True,
        **started: Any,
    ) -> Path:
        record = RunRecord.open(tmp_path / "runs", name, rank=0, resume=False)
        fields: dict[str, Any] = {
            "resolved_spec": spec,
            "choices": {"attn_impl": "torch, as there is no GPU"},
            "devices": {"world_size": 1, "names": ["cpu"]},
            "data": {"train_loader": {"card": "d1ge57", "tokens": 1000}},
            "seeds": {"seed": 17},
            "command": ["foundry", "train", "a.yaml"],
        }
        record.start(**fields | started)
        if losses is None:
            losses = {step: 5.0 / step for step in range(1, 11)}
        lines = []
        for step, loss in losses.items():
            metrics = {
                "loss/train/total": loss,
                "lr-DecoupledAdamW/group0": 1e-3 * step / 10,
                "l2_norm/grad/global": 1.0 / step,
                "throughput/tokens_per_sec": 400.0 + step,
                "time/token": 40.0 * step,
            }
            lines.append({"step": step, "time": 100.0 + step, **metrics})
            if step % 5 == 0:
                evals = {"metrics/eval/c4/LanguageCrossEntropy": loss + 0.5}
                evals["metrics/eval/c4/LanguagePerplexity"] = math.exp(loss + 0.5)
                lines.append({"step": step, "time": 100.5 + step, **evals})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (record.path / "metrics.jsonl").write_text(text)
        if status is not None:
            summary = {"steps": 10, "tokens": 400, "seconds": 5.0}
            record.finish(status=status, reason=reason, summary=summary)  # type: ignore[arg-type]
        if release:
            record.release()
        return record.path

    return make
