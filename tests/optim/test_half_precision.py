"""bfloat16 in parameters, momentum and gradients, and the kernels that update them."""

import math

import pytest
import torch
from torch import nn

from foundry_sdk.optim import AdamW, DecoupledAdamW, DecoupledLionW
from foundry_sdk.optim.guarded import GuardedOptimizer

SIZES = (1, 5000, 70001)


def parameters(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(n, generator=generator).to(device=device, dtype=dtype))
        for n in SIZES
    ]


def give_gradients(*lists, step, dtypes):
    for index, parameters in enumerate(zip(*lists, strict=True)):
        generator = torch.Generator().manual_seed(100 * step + index)
        gradient = torch.randn(parameters[0].shape, generator=generator).bfloat16()
        for p, dtype in zip(parameters, dtypes, strict=True):
            p.grad_dtype = None
            p.grad = gradient.to(device=p.device, dtype=dtype)


def test_momentum_of_16_bits_is_the_rounded_one():
    """One step's momentum is the float32 one, rounded; the weights do not differ yet."""
    [wide], [half] = ([p] for p in (parameters("cpu")[1], parameters("cpu")[1]))
    exact = DecoupledLionW([wide], 1e-3)
    rounded = DecoupledLionW([half], 1e-3, momentum_dtype="bfloat16")
    give_gradients([wide], [half], step=1, dtypes=[torch.float32] * 2)
    for optimizer in (exact, rounded):
        optimizer.step()
    moment = rounded.state[half]["exp_avg"]
    assert moment.dtype is torch.bfloat16
    assert torch.equal(moment, exact.state[wide]["exp_avg"].bfloat16())
    assert torch.equal(half, wide)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_stochastic_rounding_is_right_on_average(device):
    """A step of 1/20 of a unit in the last place moves one weight in 20 by a whole unit."""
    count, ulp = 200_000, 2.0**-8
    weight = nn.Parameter(torch.full((count,), 1.5, dtype=torch.bfloat16, device=device))
    lost = nn.Parameter(weight.detach().clone())
    lr = 2 * ulp / 20  # a unit of numbers in [1, 2) is 2 ** -7
    for p, stochastic in ((weight, True), (lost, False)):
        p.grad = -torch.ones_like(p)
        DecoupledLionW([p], lr, stochastic_rounding=stochastic).step()
    assert lost.unique().tolist() == [1.5]
    assert set(weight.unique().tolist()) == {1.5, 1.5 + 2 * ulp}
    moved = (weight != 1.5).float().mean().item()
    spread = math.sqrt(0.05 * 0.95 / count)
    assert abs(moved - 0.05) < 5 * spread


def test_stochastic_rounding_goes_on_with_other_noise_and_repeats_with_the_same_state():
    def steps(number):
        p = nn.Parameter(torch.full((5000,), 1.5, dtype=torch.bfloat16))
        optimizer = DecoupledLionW([p], 1e-3, stochastic_rounding=True)
        moved = []
        for _ in range(number):
            before = p.detach().clone()
            p.grad = -torch.ones_like(p)
            optimizer.step()
            moved.append((p != before).nonzero().flatten().tolist())
        return moved, optimizer.state[p]["step"]

    first, count = steps(2)
    assert count == 2
    assert first[0] != first[1]
    assert steps(2)[0] == first


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lion_kernel_equals_foreach(dtype):
    """Same formula, other rounding: one unit in the last place of each dtype, per step."""
    torch.manual_seed(0)
    kernel = [nn.Parameter(torch.randn(n, device="cuda", dtype=dtype)) for n in (1, 5000, 70001)]
    plain = [nn.Parameter(p.detach().clone()) for p in kernel]
    fused = DecoupledLionW(kernel, 1e-2, weight_decay=1e-4, fused=True)
    foreach = DecoupledLionW(plain, 1e-2, weight_decay=1e-4, fused=False)
    for _ in range(3):
        for a, b in zip(kernel, plain, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        fused.step()
        foreach.step()
    bound = {torch.float32: 1e-6, torch.bfloat16: 3 * 2.0**-7}[dtype]
    for a, b in zip(kernel, plain, strict=True):
        # A momentum within rounding of 0 may take either sign; none of these 75,000 may be far.
        off = (a - b).abs() > bound * (1 + b.abs())
        assert off.sum().item() <= (0 if dtype is torch.float32 else 100)
        torch.testing.assert_close(
            fused.state[a]["exp_avg"], foreach.state[b]["exp_avg"], rtol=bound, atol=bound
        )


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [AdamW, DecoupledAdamW, DecoupledLionW])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_guarded_step_is_a_step_with_scaled_gradients(cls, factor):
    """Gradients of 16 bits against the same numbers in float32, in float64 on the CPU."""
    ours = parameters("cuda")
    exact = [nn.Parameter(p.detach().cpu().double()) for p in ours]
    copies = {p: torch.empty_like(p, dtype=torch.bfloat16) for p in ours}
    guarded, plain = cls(ours, 1e-2, weight_decay=1e-4), cls(exact, 1e-2, weight_decay=1e-4)
    assert isinstance(guarded, GuardedOptimizer)
    assert guarded.can_guard()
    for step in range(4):
        give_gradients(ours, exact, step=step, dtypes=[torch.bfloat16, torch.float64])
        for p in exact:
            p.grad.mul_(factor)
        guarded.guarded_step(torch.tensor(factor, device="cuda"), copies)
        plain.step()
    for p, want in zip(ours, exact, strict=True):
        off = (p.detach().cpu().double() - want.detach()).abs() > 3e-6 * (1 + want.detach().abs())
        # Lion's momentum within rounding of 0 may take either sign: a few of 75,000.
        assert off.sum().item() <= (5 if cls is DecoupledLionW else 0)
        assert torch.equal(copies[p], p.detach().bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [AdamW, DecoupledLionW])
def test_nan_leaves_everything_as_it_was(cls):
    ours = parameters("cuda")
    copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in ours}
    optimizer = cls(ours, 1e-2)
    give_gradients(ours, step=0, dtypes=[torch.float32])
    optimizer.guarded_step(torch.ones((), device="cuda"), copies)
    before = [p.detach().clone() for p in (*ours, *copies.values())]
    state = [
        value.clone()
        for p in ours
        for value in optimizer.state[p].values()
        if torch.is_tensor(value)
    ]
    optimizer.guarded_step(torch.full((), math.nan, device="cuda"), copies)
    for now, then in zip((*ours, *copies.values()), before, strict=True):
        assert torch.equal(now, then)
    after = [value for p in ours for value in optimizer.state[p].values()]
    assert all(torch.equal(now, then) for now, then in zip(after, state, strict=True))


def test_on_a_cpu_nothing_is_guarded():
    assert not AdamW(parameters("cpu")).can_guard()
    assert not DecoupledLionW(parameters("cpu")).can_guard()
