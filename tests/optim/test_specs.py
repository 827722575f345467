"""Specs refuse numbers out of range, carry the family's defaults and build the right class."""

import subprocess
import sys

import attrs
import pytest
import torch
from torch import nn

from foundry_sdk import optim
from foundry_sdk.optim.specs import (
    AdamWSpec,
    DecoupledAdaLRLionSpec,
    DecoupledAdamWSpec,
    DecoupledClipLionSpec,
    DecoupledLionWSpec,
    NoOpSpec,
)


@pytest.mark.parametrize(
    ("spec", "cls"),
    [
        (AdamWSpec(betas=[0.8, 0.9]), optim.AdamW),
        (DecoupledAdamWSpec(eps=1e-6), optim.DecoupledAdamW),
        (DecoupledLionWSpec(weight_decay=1e-5), optim.DecoupledLionW),
        (DecoupledAdaLRLionSpec(timeout=7, min_scale=0.5), optim.DecoupledAdaLRLion),
        (DecoupledClipLionSpec(outlier_threshold=2.0), optim.DecoupledClipLion),
        (NoOpSpec(lr=0.25), optim.NoOp),
    ],
)
def test_every_setting_reaches_the_optimizer(spec, cls):
    optimizer = spec.build([{"params": [nn.Parameter(torch.zeros(2))]}])
    assert type(optimizer) is cls
    group = optimizer.param_groups[0]
    own = {"disable_grad", "param_groups"}
    settings = {field.name for field in attrs.fields(type(spec))} - own
    assert settings >= {"lr"}
    assert {name: group[name] for name in settings} == {n: getattr(spec, n) for n in settings}
    assert group["initial_lr"] == spec.lr


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (AdamWSpec, {"lr": -1e-3}, "lr must be a finite number >= 0, got -0.001"),
        (AdamWSpec, {"lr": float("nan")}, "lr must be"),
        (AdamWSpec, {"eps": 0.0}, "eps must be a finite number > 0"),
        (AdamWSpec, {"betas": (0.9,)}, "two numbers"),
        (AdamWSpec, {"betas": (0.9, 1.0)}, "two numbers"),
        (DecoupledAdamWSpec, {"weight_decay": 1.0}, "without the learning rate in it"),
        (DecoupledLionWSpec, {"lr": 0.0}, "lr must be a finite number > 0"),
        (DecoupledAdaLRLionSpec, {"timeout": 0}, "timeout must be"),
        (DecoupledAdaLRLionSpec, {"lr_penalty": 0.0}, "lr_penalty must be > 0 and <= 1"),
        (DecoupledClipLionSpec, {"outlier_threshold": -1.0}, "outlier_threshold must be"),
    ],
)
def test_bad_numbers_are_refused(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**settings)


def test_specs_and_schedules_load_no_torch():
    code = (
        "import sys, foundry_sdk.optim, foundry_sdk.optim.specs, foundry_sdk.optim.groups\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Sophia'"):
        _ = optim.Sophia
    assert "DecoupledLionW" in dir(optim)
