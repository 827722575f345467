"""Clipping against torch, NumPy, and one process against two."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foundry_sdk.specs.run import GradientClippingSpec
from foundry_sdk.training.clipping import clip_gradients

SCRIPT = Path(__file__).with_name("two_ranks.py")
SHAPES = [(4, 3), (5,), (2, 3, 2), ()]


def parameters(dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(3)
    made = []
    for shape in SHAPES:
        p = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        p.grad = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        made.append(p)
    made.append(nn.Parameter(torch.ones(2, dtype=dtype)))  # without a gradient
    return made


def clip(params, kind, threshold):
    return clip_gradients(
        params, GradientClippingSpec(clipping_type=kind, clipping_threshold=threshold)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.5, 3.0, 1e4])
def test_norm_is_torchs(dtype, threshold):
    mine, theirs = parameters(dtype), parameters(dtype)
    got = clip(mine, "norm", threshold)
    want = nn.utils.clip_grad_norm_(theirs, threshold)
    torch.testing.assert_close(got, want)
    assert got.shape == ()
    for a, b in zip(mine[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_value_is_torchs():
    mine, theirs = parameters(), parameters()
    norm = clip(mine, "value", 0.25)
    torch.testing.assert_close(norm, nn.utils.get_total_norm([p.grad for p in theirs[:-1]]))
    nn.utils.clip_grad_value_(theirs, 0.25)
    for a, b in zip(mine[:-1], theirs[:-1], strict=True):
        assert torch.equal(a.grad, b.grad)


def test_adaptive_is_unit_by_unit():
    params = parameters()
    before = [p.grad.numpy().copy() for p in params[:-1]]
    clip(params, "adaptive", 0.7)
    clipped = 0
    for p, gradient in zip(params[:-1], before, strict=True):
        weight = p.detach().numpy()
        want = gradient.copy()
        rows = range(len(want)) if want.ndim > 1 else [...]
        for row in rows:
            ratio = 0.7 * np.sqrt((weight[row] ** 2).sum()) / np.sqrt((gradient[row] ** 2).sum())
            want[row] *= min(1.0, ratio)
            clipped += ratio < 1
        np.testing.assert_allclose(p.grad.numpy(), want, rtol=1e-12)
    assert 0 < clipped < 8  # some units of each kind


def test_adaptive_leaves_zero_gradients_and_zero_weights_finite():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2))
    p.grad, q.grad = torch.tensor([[0.0, 0.0], [30.0, 40.0]]), torch.ones(2)
    norm = clip([p, q], "adaptive", 0.5)
    assert norm.item() == pytest.approx((2500 + 2) ** 0.5)
    expected = 0.5 * 2**0.5 * torch.tensor([0.6, 0.8])
    torch.testing.assert_close(p.grad, torch.stack([torch.zeros(2), expected]))
    assert torch.equal(q.grad, torch.zeros(2))


def test_without_a_spec_only_the_norm_is_computed():
    params, untouched = parameters(), parameters()
    norm = clip_gradients(iter(params), None)
    flat = np.concatenate([p.grad.numpy().ravel() for p in untouched[:-1]])
    assert norm.item() == pytest.approx(np.sqrt((flat**2).sum()), rel=1e-14)
    for a, b in zip(params[:-1], untouched[:-1], strict=True):
        assert torch.equal(a.grad, b.grad)


def test_no_gradients_have_norm_zero():
    assert clip([nn.Parameter(torch.ones(2))], "norm", 1.0).item() == 0.0


def test_low_precision_norms_are_float32():
    params = parameters(torch.bfloat16, scale=300.0)
    want = torch.cat([p.grad.double().flatten() for p in params[:-1]]).norm()
    got = clip(params, "norm", 1.0)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["norm", "value", "adaptive"])
def test_a_nan_is_seen_in_the_norm(kind):
    params = parameters()
    params[0].grad[0, 0] = float("nan")
    assert clip(params, kind, 1.0).isnan()
    assert params[0].grad[0, 0].isnan()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    command = [sys.executable, str(SCRIPT)]
    arguments = [str(folder / "meeting"), str(folder / "results.pt")]
    processes = [
        subprocess.Popen([*command, str(rank), *arguments], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("way", ["rows", "columns", "copies", "mixed"])
def test_two_ranks_clip_as_one(two_ranks, script, way):
    want = script.clip_all(lambda _, tensor: tensor)
    assert two_ranks[way].keys() == want.keys()
    for case, tensors in want.items():
        torch.testing.assert_close(two_ranks[way][case], tensors, msg=f"{way}: {case}")


def test_two_ranks_train_as_one(two_ranks, script):
    want = script.train_all(lambda model: None)
    assert two_ranks["train"].keys() == want.keys()
    for name, tensors in want.items():
        for mine, theirs in zip(two_ranks["train"][name], tensors, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["norm", "value", "adaptive", None])
def test_clipping_does_not_wait_for_the_device(kind):
    params = [nn.Parameter(p.detach().cuda()) for p in parameters(torch.float32)[:-1]]
    for p, q in zip(params, parameters(torch.float32)[:-1], strict=True):
        p.grad = q.grad.cuda()
    spec = None if kind is None else GradientClippingSpec(clipping_type=kind)
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = clip_gradients(params, spec)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norm.is_cuda
