"""Losses against each other, NumPy in float64 and finite differences."""

import numpy as np
import pytest
import torch
from torch import nn

from foundry_sdk.batch import IGNORE_INDEX
from foundry_sdk.losses.cross_entropy import CrossEntropy
from foundry_sdk.losses.fused import FusedCrossEntropy, _chunk_rows
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec

V, H = 37, 8
OPTIONS = [
    {},
    {"scale": 0.25},
    {"softcap": 3.0},
    {"scale": 1.5, "softcap": 2.0, "z_loss": 0.01},
    {"z_loss": 0.1},
]


def inputs(dtype=torch.float64, tokens=(3, 11), device="cpu", vocab=V, width=H):
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(*tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocab, tokens, generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.3] = IGNORE_INDEX
    return (
        hidden.to(device, dtype).requires_grad_(),
        (weight / width**0.5 * 2).to(device, dtype).requires_grad_(),
        labels.to(device),
    )


def plain(hidden, weight, labels, *, scale=1.0, softcap=None, z_loss=0.0):
    logits = hidden @ weight.T * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return CrossEntropy(z_loss)(logits, labels)


def fused(hidden, weight, labels, *, z_loss=0.0, max_logits_bytes=V * 8 * 5, **options):
    return FusedCrossEntropy(z_loss, max_logits_bytes)(hidden, weight, labels, **options)


def with_gradients(loss, hidden, weight, labels, *, upstream=0.37, **options):
    output = loss(hidden, weight, labels, **options)
    return output, torch.autograd.grad(output.loss_sum * upstream, [hidden, weight])


def by_hand(hidden, weight, labels, *, scale=1.0, softcap=None, z_loss=0.0):
    """The sum in NumPy, one token at a time."""
    total = 0.0
    rows = hidden.detach().reshape(-1, hidden.shape[-1]).numpy()
    for row, label in zip(rows, labels.flatten().tolist(), strict=True):
        if label == IGNORE_INDEX:
            continue
        logits = weight.detach().numpy() @ row * scale
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        partition = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        total += partition - logits[label] + z_loss * partition**2
    return total


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("loss", [plain, fused])
def test_sum_is_the_formula(loss, options):
    hidden, weight, labels = inputs()
    output = loss(hidden, weight, labels, **options)
    assert output.loss_sum.item() == pytest.approx(
        by_hand(hidden, weight, labels, **options), rel=1e-12
    )
    assert output.token_count.item() == (labels.numpy() != IGNORE_INDEX).sum()
    assert output.token_count.dtype == torch.int64


@pytest.mark.parametrize("options", OPTIONS)
def test_fused_gradients_are_the_plain_ones(options):
    tensors = inputs()
    got, grads = with_gradients(fused, *tensors, **options)
    want, expected = with_gradients(plain, *tensors, **options)
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=1e-13, atol=0)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS)
def test_fused_gradients_are_finite_differences(options):
    hidden, weight, labels = inputs(tokens=(7,))
    _, grads = with_gradients(fused, hidden, weight, labels, upstream=1.0, **options)
    generator = torch.Generator().manual_seed(2)
    for index, (tensor, grad) in enumerate(zip((hidden, weight), grads, strict=True)):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [hidden.detach(), weight.detach()]
            moved[index] = moved[index] + sign * 1e-5 * direction
            ends.append(fused(*moved, labels, **options).loss_sum.item())
        slope = (ends[0] - ends[1]) / 2e-5
        assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 5, 33, 1000])
def test_chunk_size_changes_nothing(rows):
    tensors = inputs()
    got, grads = with_gradients(fused, *tensors, max_logits_bytes=rows * V * 8, z_loss=0.1)
    want, expected = with_gradients(plain, *tensors, z_loss=0.1)
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=1e-13, atol=0)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_bfloat16_is_closer_to_the_truth_than_plain_bfloat16():
    """Softmax and the sum over chunks are float32; only the matmuls' inputs are rounded."""
    exact = inputs(tokens=(4, 64))
    low = [t.detach().bfloat16().requires_grad_() for t in exact[:2]]
    truth = [t.detach().double().requires_grad_() for t in low]
    want, expected = with_gradients(plain, *truth, exact[2])
    got, grads = with_gradients(fused, *low, exact[2])
    _, plain_grads = with_gradients(plain, *low, exact[2])
    assert got.loss_sum.dtype == torch.float32
    assert [g.dtype for g in grads] == [torch.bfloat16] * 2
    assert abs(got.loss_sum.item() / want.loss_sum.item() - 1) < 2e-3
    for mine, theirs, true in zip(grads, plain_grads, expected, strict=True):
        scale = true.abs().max()
        assert (mine.double() - true).abs().max() < 2**-7 * scale
        assert (mine.double() - true).norm() < 1.5 * (theirs.double() - true).norm()


def test_autocast_computes_low_and_returns_the_parameters_dtype():
    hidden, weight, labels = inputs(torch.float32, tokens=(4, 64))
    want, expected = with_gradients(plain, hidden, weight, labels)
    with torch.autocast("cpu", torch.bfloat16):
        got, grads = with_gradients(fused, hidden, weight, labels)
    assert got.loss_sum.dtype == torch.float32
    assert [g.dtype for g in grads] == [torch.float32] * 2
    assert not torch.equal(got.loss_sum, want.loss_sum)  # it did compute in bfloat16
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=2e-3, atol=0)
    for mine, theirs in zip(grads, expected, strict=True):
        assert (mine - theirs).norm() < 2**-7 * theirs.norm()


def test_float16_keeps_probabilities_below_its_smallest_number():
    """39,999 tokens of probability 2e-9 each: their gradients matter only together."""
    vocab, width = 40_000, 4
    labels = torch.zeros(2, dtype=torch.int64)
    weight = torch.ones(vocab, width, dtype=torch.float16)
    weight[0] = 6.0  # logit 24 against 4: the others have probability 2e-9
    hidden = torch.ones(2, width, dtype=torch.float16, requires_grad=True)
    exact = hidden.detach().double().requires_grad_()
    (got,) = torch.autograd.grad(fused(hidden, weight, labels).loss_sum * 1000, hidden)
    (want,) = torch.autograd.grad(plain(exact, weight.double(), labels).loss_sum * 1000, exact)
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=0)


@pytest.mark.parametrize("loss", [plain, fused])
def test_all_labels_ignored_is_zero_with_zero_gradients(loss):
    hidden, weight, labels = inputs()
    output, grads = with_gradients(
        loss, hidden, weight, torch.full_like(labels, IGNORE_INDEX), z_loss=0.1
    )
    assert (output.loss_sum.item(), output.token_count.item()) == (0.0, 0)
    assert all(torch.count_nonzero(grad) == 0 for grad in grads)


def test_infinite_logits_of_ignored_tokens_do_no_harm():
    hidden, weight, labels = inputs()
    labels[0] = IGNORE_INDEX
    values = hidden.detach().clone()
    values[0] = float("inf")
    spoiled = values.requires_grad_()
    output = fused(spoiled, weight.detach(), labels)
    (grad,) = torch.autograd.grad(output.loss_sum, [spoiled])
    clean = fused(hidden, weight, labels)
    torch.testing.assert_close(output.loss_sum, clean.loss_sum)
    assert torch.count_nonzero(grad[0]) == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(frozen):
    hidden, weight, labels = inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    fused(hidden, weight, labels).loss_sum.backward()
    assert (hidden.grad is None) is (frozen == "hidden")
    assert (weight.grad is None) is (frozen == "weight")


def test_evaluation_is_the_cross_entropy_alone_and_keeps_no_graph():
    hidden, weight, labels = inputs()
    want = by_hand(hidden, weight, labels)
    with torch.no_grad():
        for output in (
            FusedCrossEntropy(z_loss=0.5).eval()(hidden, weight, labels),
            CrossEntropy(z_loss=0.5).eval()(hidden @ weight.T, labels),
        ):
            assert output.loss_sum.item() == pytest.approx(want, rel=1e-12)
            assert not output.loss_sum.requires_grad


def test_a_second_backward_is_refused():
    hidden, weight, labels = inputs()
    loss_sum = fused(hidden, weight, labels).loss_sum
    loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_sum.backward()


def test_gradients_add_over_microbatches_and_with_a_tied_embedding():
    """The head's weight is the embedding's: both gradients meet in one tensor."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(V, H, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, V, (4, 9), generator=generator)
    results = []
    for loss, parts in ((fused, 2), (plain, 1)):
        embedding = nn.Embedding(V, H, _weight=table.clone())
        for part in ids.chunk(parts):
            loss(embedding(part).tanh(), embedding.weight, part.roll(-1, 1)).loss_sum.backward()
        results.append(embedding.weight.grad)
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_whole_it_is_the_same(backend):
    tensors = inputs()
    module = FusedCrossEntropy(0.1, V * 8 * 16)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    got, grads = with_gradients(compiled, *tensors, softcap=3.0)
    want, expected = with_gradients(module, *tensors, softcap=3.0)
    torch.testing.assert_close(got.loss_sum, want.loss_sum)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_label_outside_the_vocabulary_is_refused():
    hidden, weight, labels = inputs()
    labels[0, 0] = V
    for loss in (plain, fused):
        with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
            loss(hidden, weight, labels)


@pytest.mark.parametrize("tokens", [1, 127, 128, 1000, 65536])
@pytest.mark.parametrize("vocab", [37, 50368, 256_000])
def test_chunks_fit_their_bound_and_cover_the_tokens_evenly(tokens, vocab):
    bound = 1 << 29
    hidden = torch.empty(tokens, 2, dtype=torch.bfloat16)
    rows = _chunk_rows(hidden, vocab_size=vocab, bound=bound)
    assert rows * vocab * 2 <= bound
    most = bound // (vocab * 2)
    assert -(-tokens // rows) <= -(-tokens // most) + 1


def test_specs_build_what_they_say():
    fused_module = FusedCrossEntropySpec(z_loss=0.25, max_logits_bytes=99).build()
    assert isinstance(fused_module, FusedCrossEntropy)
    assert (fused_module.z_loss, fused_module.max_logits_bytes) == (0.25, 99)
    plain_module = CrossEntropySpec(z_loss=0.5).build()
    assert isinstance(plain_module, CrossEntropy)
    assert plain_module.z_loss == 0.5
    with pytest.raises(ValueError, match="z_loss must be a finite number >= 0"):
        CrossEntropySpec(z_loss=-1.0)
    with pytest.raises(ValueError, match="at least 1 byte"):
        FusedCrossEntropySpec(max_logits_bytes=0)


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("vocab", [37, 8192, 50_257])
def test_kernel_equals_plain_in_float32(options, vocab):
    """Bounds: float32 rounding of sums over the vocabulary, without TF32."""
    size = {"tokens": (3, 50), "vocab": vocab, "width": 32}
    tensors = inputs(torch.float32, device="cuda", **size)
    bound = {"max_logits_bytes": vocab * 4 * 64}
    got, grads = with_gradients(fused, *tensors, **options, **bound)
    exact = inputs(torch.float64, device="cuda", **size)
    want, expected = with_gradients(plain, *exact, **options)
    torch.testing.assert_close(got.loss_sum.double(), want.loss_sum, rtol=2e-6, atol=0)
    for mine, theirs in zip(grads, expected, strict=True):
        assert (mine.double() - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_is_near_plain_in_low_precision(options, dtype):
    """Bound: two roundings of the logits' gradient, relative to the largest gradient."""
    size = {"tokens": (3, 200), "vocab": 50_257, "width": 64}
    exact = inputs(torch.float64, device="cuda", **size)
    low = [t.detach().to(dtype).requires_grad_() for t in exact[:2]]
    truth = [t.detach().double().requires_grad_() for t in low]
    got, grads = with_gradients(fused, *low, exact[2], **options, max_logits_bytes=50_257 * 2 * 128)
    want, expected = with_gradients(plain, *truth, exact[2], **options)
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(got.loss_sum.double(), want.loss_sum, rtol=epsilon, atol=0)
    for mine, theirs in zip(grads, expected, strict=True):
        assert (mine.double() - theirs).abs().max() < 2 * epsilon * theirs.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_compiled_is_the_same(dtype):
    hidden, weight, labels = inputs(dtype, device="cuda")
    module = FusedCrossEntropy(0.1, V * 4 * 16)
    want, expected = with_gradients(module, hidden, weight, labels)
    got, grads = with_gradients(torch.compile(module), hidden, weight, labels)
    torch.testing.assert_close(got.loss_sum, want.loss_sum)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.gpu
def test_kernel_of_nothing_in_evaluation_and_of_a_wrong_label():
    hidden, weight, labels = inputs(torch.float32, device="cuda")
    module = FusedCrossEntropy(0.1, V * 4 * 16)
    nothing, zeros = with_gradients(module, hidden, weight, torch.full_like(labels, IGNORE_INDEX))
    assert nothing.loss_sum.item() == 0
    assert all(torch.count_nonzero(grad) == 0 for grad in zeros)
    with torch.no_grad():
        evaluated = module.eval()(hidden, weight, labels).loss_sum
    torch.testing.assert_close(evaluated, CrossEntropy()(hidden @ weight.T, labels).loss_sum)
    labels[0, 0] = V + 5
    assert module(hidden, weight, labels).loss_sum.isnan()


@pytest.mark.gpu
def test_no_logits_exist_whole():
    tokens, vocab, width = 16_384, 50_304, 512
    hidden = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocab, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,), device="cuda")
    bound = 1 << 26
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    FusedCrossEntropy(max_logits_bytes=bound)(hidden, weight, labels).loss_sum.backward()
    used = torch.cuda.max_memory_allocated() - before
    gradients = tokens * width * 2 + vocab * width * (4 + 2)
    assert used < gradients + 2 * bound < tokens * vocab * 2
