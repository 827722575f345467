"""Optimizers against their formulas, one float64 element at a time, in NumPy."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from foundry_sdk.optim import (
    AdamW,
    DecoupledAdaLRLion,
    DecoupledAdamW,
    DecoupledClipLion,
    DecoupledLionW,
    NoOp,
)

SHAPES = [(4, 3), (5,), (2, 3, 2)]
MULTIPLIERS = [0.0, 0.5, 1.0, 0.75, 0.3]


def start(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(value.to(dtype)) for value in values]


def gradients(steps, scale=None):
    generator = torch.Generator().manual_seed(5)
    return [
        [
            torch.randn(shape, generator=generator, dtype=torch.float64)
            * (1.0 if scale is None else scale(step))
            for shape in SHAPES
        ]
        for step in range(steps)
    ]


def run(optimizer, params, grads, multipliers=None):
    for step, per_param in enumerate(grads):
        for p, grad in zip(params, per_param, strict=True):
            p.grad = grad.to(p.dtype)
        for group in optimizer.param_groups:
            multiplier = 1.0 if multipliers is None else multipliers[step]
            group["lr"] = group["initial_lr"] * multiplier
        optimizer.step()
    return [p.detach().double().numpy() for p in params]


def adamw_by_hand(lr, betas, eps, wd, *, amsgrad, decoupled):
    results = []
    for index, p in enumerate(start()):
        w = p.detach().numpy().copy()
        m, v, largest = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
        for t, multiplier in enumerate(MULTIPLIERS, start=1):
            g = gradients(len(MULTIPLIERS))[t - 1][index].numpy()
            now = lr * multiplier
            w = w * (1 - multiplier * wd) if decoupled else w * (1 - now * wd)
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            largest = np.maximum(largest, v)
            second = largest if amsgrad else v
            denominator = np.sqrt(second) / np.sqrt(1 - betas[1] ** t) + eps
            w = w - now / (1 - betas[0] ** t) * m / denominator
        results.append(w)
    return results


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("cls", "decoupled"), [(AdamW, False), (DecoupledAdamW, True)])
def test_adamw_equals_its_formula_in_float64(cls, decoupled, amsgrad, fused):
    params = start()
    settings = {"lr": 2e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 3e-2}
    optimizer = cls(params, amsgrad=amsgrad, fused=fused, **settings)
    got = run(optimizer, params, gradients(len(MULTIPLIERS)), MULTIPLIERS)
    want = adamw_by_hand(2e-2, (0.9, 0.95), 1e-6, 3e-2, amsgrad=amsgrad, decoupled=decoupled)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


def test_adamw_is_torch_adamw():
    mine, theirs = start(torch.float32), start(torch.float32)
    ours = AdamW(mine, lr=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, foreach=True)
    for group in reference.param_groups:
        group["initial_lr"] = group["lr"]
    grads = gradients(6)
    for got, want in zip(run(ours, mine, grads), run(reference, theirs, grads), strict=True):
        np.testing.assert_array_equal(got, want)


def lion_by_hand(lr, betas, wd, grads, multipliers):
    results = []
    for index, p in enumerate(start()):
        w = p.detach().numpy().copy()
        m = np.zeros_like(w)
        for step, multiplier in enumerate(multipliers):
            g = grads[step][index].numpy()
            w = w * (1 - multiplier * wd)
            w = w - lr * multiplier * np.sign(betas[0] * m + (1 - betas[0]) * g)
            m = betas[1] * m + (1 - betas[1]) * g
        results.append((w, m))
    return results


def test_lionw_equals_its_formula_in_float64():
    params, grads = start(), gradients(len(MULTIPLIERS))
    optimizer = DecoupledLionW(params, 3e-2, (0.8, 0.97), 5e-2)
    got = run(optimizer, params, grads, MULTIPLIERS)
    for p, mine, (w, m) in zip(
        params, got, lion_by_hand(3e-2, (0.8, 0.97), 5e-2, grads, MULTIPLIERS), strict=True
    ):
        np.testing.assert_allclose(mine, w, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(optimizer.state[p]["exp_avg"].numpy(), m, rtol=1e-12)


def test_lionw_in_small_buckets_is_the_same(monkeypatch):
    whole, parts = start(), start()
    grads = gradients(4)
    one = run(DecoupledLionW(whole, 1e-2, weight_decay=1e-4), whole, grads)
    monkeypatch.setattr("foundry_sdk.optim.lionw._BUCKET_ELEMENTS", 6)
    many = run(DecoupledLionW(parts, 1e-2, weight_decay=1e-4), parts, grads)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)


def leaping(step):
    """A gradient scale with outliers in two runs of steps, once there is a mean."""
    return 200.0 if step in (520, 521, 560, 640) else 1.0


def adaptive_by_hand(kind, *, threshold, steps, timeout=30, penalty=0.7, floor=0.4):
    """The rule in plain lists: observations, means of those 500 to 999 steps ago, outliers."""
    lr, (b1, b2), wd = 1e-3, (0.9, 0.99), 1e-4
    all_grads = gradients(steps, leaping)
    results = []
    for index, p in enumerate(start()):
        w, m = p.detach().numpy().copy(), 0.0
        norms, outliers, clips = [], [], 0
        for step in range(steps):
            g = all_grads[step][index].numpy()
            new_m = b2 * m + (1 - b2) * g
            norms.append(np.sqrt(np.sum((new_m if kind == "adalr" else g) ** 2)))
            past = norms[max(0, step - 999) : step - 499] if step >= 500 else []
            mean = np.mean(past) if past else np.inf
            now = lr
            if norms[-1] > threshold * mean:
                outliers.append(step)
                if kind == "clip":
                    g = g / norms[-1] * threshold * mean
                    clips += 1
            if kind == "adalr":
                recent = [o for o in outliers if step - o <= timeout]
                now = lr * max(floor, penalty ** len(recent))
            w = w * (1 - wd * now / lr)
            w = w - now * np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
        results.append((w, m, clips, len(outliers)))
    return results


def test_adalr_lion_equals_its_rule():
    steps, params = 700, start()
    optimizer = DecoupledAdaLRLion(
        params, 1e-3, (0.9, 0.99), 1e-4, outlier_threshold=3.0, timeout=30, lr_penalty=0.7,
        min_scale=0.4,
    )  # fmt: skip
    got = run(optimizer, params, gradients(steps, leaping))
    want = adaptive_by_hand("adalr", threshold=3.0, steps=steps)
    assert all(outliers > 3 for *_, outliers in want)  # the rule was put to the test
    for mine, (w, *_) in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, w, rtol=1e-10, atol=1e-12)


def test_clip_lion_equals_its_rule():
    steps, params = 700, start()
    optimizer = DecoupledClipLion(params, 1e-3, (0.9, 0.99), 1e-4, outlier_threshold=5.0)
    got = run(optimizer, params, gradients(steps, leaping))
    want = adaptive_by_hand("clip", threshold=5.0, steps=steps)
    for p, mine, (w, m, clips, _) in zip(params, got, want, strict=True):
        np.testing.assert_allclose(mine, w, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(optimizer.state[p]["exp_avg"].numpy(), m, rtol=1e-9)
        assert optimizer.state[p]["clipped_batches"].item() == clips == 4


OPTIMIZERS = [AdamW, DecoupledAdamW, DecoupledLionW, DecoupledAdaLRLion, DecoupledClipLion]


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_goes_on_bit_for_bit(cls, dtype):
    grads = gradients(6)
    through = start(dtype)
    straight = run(cls(through, lr=1e-2, weight_decay=1e-4), through, grads)
    params = start(dtype)
    first = cls(params, lr=1e-2, weight_decay=1e-4)
    run(first, params, grads[:3])
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    second = cls(copies, lr=5.0, weight_decay=0.5)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["initial_lr"] == 1e-2
    for p, copy in zip(params, copies, strict=True):
        for name, value in first.state[p].items():
            assert second.state[copy][name].dtype == value.dtype
            assert torch.equal(second.state[copy][name], value)
    for resumed, whole in zip(run(second, copies, grads[3:]), straight, strict=True):
        np.testing.assert_array_equal(resumed, whole)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_parameter_without_gradient_is_left_alone(cls):
    params = start()
    before = params[1].detach().clone()
    optimizer = cls(params, lr=1e-2, weight_decay=1e-4)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state
    assert not torch.equal(params[0], start()[0])


@pytest.mark.parametrize("cls", [DecoupledAdamW, DecoupledLionW])
def test_a_group_keeps_its_own_peak(cls):
    params = start()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 3e-3}]
    optimizer = cls(groups, lr=1e-2)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 3e-3]


def test_adamw_that_starts_at_zero_decays_fully():
    params = start()
    optimizer = DecoupledAdamW(params, lr=0.0, weight_decay=0.25)
    got = run(optimizer, params, gradients(1))
    for mine, p in zip(got, start(), strict=True):
        np.testing.assert_allclose(mine, 0.75 * p.detach().numpy(), rtol=1e-14)


def test_no_op_changes_nothing():
    params = start()
    for mine, p in zip(run(NoOp(params), params, gradients(2)), start(), strict=True):
        np.testing.assert_array_equal(mine, p.detach().numpy())


def test_strong_decoupled_decay_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        DecoupledLionW(start(), lr=1e-4, weight_decay=1e-4)
        AdamW(start(), weight_decay=0.1)
        assert not caplog.records
        DecoupledAdamW(start(), weight_decay=0.1)
    assert "DecoupledAdamW: weight_decay=0.1" in caplog.text


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        DecoupledLionW(embedding.parameters()).step()


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (DecoupledLionW, {"lr": 0.0}, "lr must be greater than 0"),
        (DecoupledAdamW, {"lr": -1.0}, "lr must be"),
        (DecoupledLionW, {"betas": (0.9, 1.0)}, "betas must be"),
        (AdamW, {"eps": float("nan")}, "eps must be"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay must be"),
        (DecoupledAdaLRLion, {"timeout": 0}, "timeout must be"),
        (DecoupledAdaLRLion, {"lr_penalty": 1.5}, "lr_penalty must be"),
        (DecoupledClipLion, {"outlier_threshold": 0.0}, "outlier_threshold must be"),
    ],
)
def test_numbers_out_of_range_are_refused(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(start(), **settings)


def test_a_closure_is_evaluated_with_gradients():
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = DecoupledLionW([p], lr=0.5)

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert p.item() == 1.5


@pytest.mark.gpu
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_gpu_equals_cpu(cls):
    grads = gradients(5)
    cpu = start(torch.float32)
    gpu = [nn.Parameter(p.detach().cuda()) for p in cpu]
    want = run(cls(cpu, lr=1e-2, weight_decay=1e-4), cpu, grads)
    device_grads = [[grad.cuda() for grad in step] for step in grads]
    optimizer = cls(gpu, lr=1e-2, weight_decay=1e-4)
    for step in device_grads:
        for p, grad in zip(gpu, step, strict=True):
            p.grad = grad.float()
        optimizer.step()
    for p, expected in zip(gpu, want, strict=True):
        np.testing.assert_allclose(p.detach().cpu().numpy(), expected, rtol=2e-5, atol=2e-6)
