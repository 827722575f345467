"""Checks of losses: sums that add up, gradients against finite differences, labels left out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foundry_sdk.batch import IGNORE_INDEX, LossOutput
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.losses.module import HeadLoss, LogitsLoss
from foundry_sdk.testing.failure import expect

Loss = LogitsLoss | HeadLoss
_ROWS, _LENGTH, _HIDDEN, _VOCABULARY = 2, 3, 4, 7


def check_loss(spec: LossSpec, equals: LossSpec | None) -> None:
    """Check a loss on two rows of three labels, of which one does not count.

    Args:
        spec: of the loss.
        equals: of a loss with the same values, such as cross-entropy of whole logits.

    Raises:
        ConformanceError: something is not so.
    """
    loss: Any = spec.build()
    expect(
        isinstance(loss, LogitsLoss | HeadLoss),
        spec,
        f"build must return a LogitsLoss or a HeadLoss, got {type(loss).__name__}",
    )
    loss.train()
    inputs, labels = _inputs(loss, torch.float32), _labels()
    _check_output(spec, loss, inputs, labels)
    _check_additivity(spec, loss, inputs, labels)
    _check_nothing_to_learn(spec, loss, inputs)
    _check_ignored(spec, loss, inputs, labels)
    _check_bfloat16(spec, loss, inputs, labels)
    _check_gradients(spec, loss, labels)
    if isinstance(loss, HeadLoss):
        _check_head(spec, loss, inputs, labels)
    if equals is not None:
        _check_equal(spec, loss, equals, labels)


def _inputs(loss: Loss, dtype: torch.dtype) -> list[Tensor]:
    """Return logits, or hidden states and a head."""
    generator = torch.Generator().manual_seed(5)
    width = _HIDDEN if isinstance(loss, HeadLoss) else _VOCABULARY
    first = torch.randn(_ROWS, _LENGTH, width, dtype=torch.float64, generator=generator)
    head = torch.randn(_VOCABULARY, _HIDDEN, dtype=torch.float64, generator=generator)
    found = [first, head] if isinstance(loss, HeadLoss) else [first]
    return [tensor.to(dtype) for tensor in found]


def _labels() -> Tensor:
    return torch.tensor([[0, 3, 6], [IGNORE_INDEX, 1, 5]])


def _run(loss: Loss, inputs: list[Tensor], labels: Tensor) -> LossOutput:
    output: LossOutput = loss(*inputs, labels)
    return output


def _grads(loss: Loss, inputs: list[Tensor], labels: Tensor) -> tuple[LossOutput, list[Tensor]]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = _run(loss, leaves, labels)
    grads = torch.autograd.grad(output.loss_sum, leaves, allow_unused=True)
    zeros = (torch.zeros_like(leaf) for leaf in leaves)
    filled = [zero if grad is None else grad for grad, zero in zip(grads, zeros, strict=True)]
    return output, filled


def _check_output(spec: LossSpec, loss: Loss, inputs: list[Tensor], labels: Tensor) -> None:
    returned: object = loss(*inputs, labels)
    expect(
        isinstance(returned, LossOutput),
        spec,
        f"return LossOutput(loss_sum, token_count), got {type(returned).__name__}",
    )
    output, grads = _grads(loss, inputs, labels)
    loss_sum, count = output
    expect(
        loss_sum.shape == () and loss_sum.dtype == torch.float32,
        spec,
        f"loss_sum must be one float32 number, got {loss_sum.dtype} {tuple(loss_sum.shape)}",
    )
    counted = int((labels != IGNORE_INDEX).sum())
    expect(
        count.shape == () and count.dtype == torch.int64 and int(count) == counted,
        spec,
        f"token_count must be int64, the number of labels other than {IGNORE_INDEX} "
        f"({counted}), got {count!r}",
    )
    again, grads_again = _grads(loss, inputs, labels)
    same = torch.equal(loss_sum, again.loss_sum)
    expect(
        same and all(map(torch.equal, grads, grads_again)),
        spec,
        "the same input gives another loss or gradient the second time; keep no state in forward",
    )


def _check_additivity(spec: LossSpec, loss: Loss, inputs: list[Tensor], labels: Tensor) -> None:
    whole = _run(loss, inputs, labels)
    parts = [
        _run(loss, [inputs[0][row], *inputs[1:]], labels[row])
        for row in (slice(0, 1), slice(1, None))
    ]
    together = parts[0].loss_sum + parts[1].loss_sum
    expect(
        torch.allclose(whole.loss_sum, together, rtol=1e-5, atol=1e-6),
        spec,
        f"two halves of a batch have {float(together):.6g} together, the whole has "
        f"{float(whole.loss_sum):.6g}; return the sum over labels, not a mean",
    )


def _check_nothing_to_learn(spec: LossSpec, loss: Loss, inputs: list[Tensor]) -> None:
    output, grads = _grads(loss, inputs, torch.full((_ROWS, _LENGTH), IGNORE_INDEX))
    zero = float(output.loss_sum.detach()) == 0 and int(output.token_count) == 0
    expect(
        zero and all(not grad.any() for grad in grads),
        spec,
        f"where no label counts, loss and gradients must be 0, got {output.loss_sum.item():.6g}; "
        "do not divide by the number of labels",
    )


def _check_ignored(spec: LossSpec, loss: Loss, inputs: list[Tensor], labels: Tensor) -> None:
    _, grads = _grads(loss, inputs, labels)
    expect(
        not grads[0][labels == IGNORE_INDEX].any(),
        spec,
        f"a position with the label {IGNORE_INDEX} has a gradient; leave it out of the sum",
    )


def _check_bfloat16(spec: LossSpec, loss: Loss, inputs: list[Tensor], labels: Tensor) -> None:
    rounded = [tensor.to(torch.bfloat16) for tensor in inputs]
    exact = _run(loss, [tensor.float() for tensor in rounded], labels).loss_sum
    found = _run(loss, rounded, labels).loss_sum
    expect(
        found.dtype == torch.float32 and torch.allclose(found, exact, rtol=0.05, atol=0.05),
        spec,
        f"from bfloat16 it makes {found.dtype} {float(found):.5g}, from the same numbers in "
        f"float32 {float(exact):.5g}; compute the softmax and the sum in float32",
    )


def _check_gradients(spec: LossSpec, loss: Loss, labels: Tensor) -> None:
    """Compare with central differences, in float64 where the loss keeps it."""
    inputs = _inputs(loss, torch.float64)
    output, grads = _grads(loss, inputs, labels)
    exact = output.loss_sum.dtype == torch.float64
    width, tolerance = (1e-6, 1e-6) if exact else (1e-2, 5e-3)
    for number, (tensor, grad) in enumerate(zip(inputs, grads, strict=True)):
        expected = _differences(
            lambda changed, at=number: float(  # type: ignore[misc]  # a default binds the number
                _run(loss, [*inputs[:at], changed, *inputs[at + 1 :]], labels).loss_sum
            ),
            tensor,
            width,
        )
        worst = float((grad - expected).abs().max())
        expect(
            worst <= tolerance * max(1.0, float(expected.abs().max())),
            spec,
            f"the gradient of input {number} differs by {worst:.3g} from finite differences "
            f"(largest gradient {float(expected.abs().max()):.3g}); correct its backward",
        )


def _differences(value: Callable[[Tensor], float], at: Tensor, width: float) -> Tensor:
    """Return the central differences of ``value`` by each element of ``at``."""
    found = torch.zeros_like(at)
    for index in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[index] = width
        found.view(-1)[index] = (value(at + step) - value(at - step)) / (2 * width)
    return found


def _check_head(spec: LossSpec, loss: HeadLoss, inputs: list[Tensor], labels: Tensor) -> None:
    hidden, head = inputs
    scaled = loss(hidden, head, labels, scale=0.5).loss_sum
    expect(
        torch.allclose(scaled, loss(0.5 * hidden, head, labels).loss_sum, rtol=1e-5),
        spec,
        "scale=0.5 is not the same as halving the hidden states; multiply the logits by scale",
    )
    uncapped = loss(hidden, head, labels).loss_sum
    wide = loss(hidden, head, labels, softcap=1e4).loss_sum
    capped = loss(hidden, head, labels, softcap=0.1).loss_sum
    expect(
        torch.allclose(wide, uncapped, rtol=1e-4) and not torch.allclose(capped, uncapped),
        spec,
        "softcap=c must make logits c * tanh(logits / c): a wide one changes nothing, a narrow "
        "one does",
    )


def _check_equal(spec: LossSpec, loss: Loss, equals: LossSpec, labels: Tensor) -> None:
    other = equals.build().train()
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(_ROWS, _LENGTH, _HIDDEN, dtype=torch.float64, generator=generator)
    head = torch.randn(_VOCABULARY, _HIDDEN, dtype=torch.float64, generator=generator)

    def through(each: Any) -> tuple[Tensor, tuple[Tensor, ...]]:  # noqa: ANN401 - either loss
        leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        made = leaves if isinstance(each, HeadLoss) else (leaves[0] @ leaves[1].T,)
        total = each(*made, labels).loss_sum
        return total.detach(), torch.autograd.grad(total, leaves)

    (found, grads), (expected, expected_grads) = through(loss), through(other)
    tolerance = 1e-9 if found.dtype == expected.dtype == torch.float64 else 1e-5
    pairs = [(found.double(), expected.double()), *zip(grads, expected_grads, strict=True)]
    expect(
        all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs),
        spec,
        f"loss or gradients differ from {equals.kind!r}: {float(found):.9g} instead of "
        f"{float(expected):.9g}",
    )
