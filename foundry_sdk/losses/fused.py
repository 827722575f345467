"""Head and cross-entropy in one, chunk by chunk, so that the logits never exist whole."""

import importlib.util
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

from foundry_sdk.batch import IGNORE_INDEX, LossOutput
from foundry_sdk.losses.module import HeadLoss

_FP16_GRADIENT_SCALE: Final = 1024.0
"""float16 ends at 6e-8, above most probabilities of a large vocabulary; this moves them up."""

_HAS_TRITON: Final = importlib.util.find_spec("triton") is not None

_ROW_MULTIPLE: Final = 128
"""Rows of a matmul tile on a GPU; a chunk that is no multiple of it wastes part of one."""


class ChunkedHead(NamedTuple):
    """How logits are made of hidden states and turned into a loss.

    A tuple, because ``torch.compile`` cannot trace the making of a frozen attrs object.

    Attributes:
        scale: factor on the logits.
        softcap: c of ``c * tanh(scale * logits / c)``; None = no cap.
        z_loss: coefficient of the squared log-partition.
        max_logits_bytes: bound on a chunk of logits.
    """

    scale: float
    softcap: float | None
    z_loss: float
    max_logits_bytes: int


class FusedCrossEntropy(HeadLoss):
    """Cross-entropy from hidden states, equal to ``CrossEntropy`` of the model's logits.

    The tokens are taken in chunks. Each makes its logits, turns them in place into the gradient of
    the logits, and from that the gradients of its hidden states and of the head, all within
    ``forward``; ``backward`` only multiplies by what comes from above. That costs no more than the
    usual three matmuls, and the memory of one chunk of logits and of one gradient of each input.
    The idea is that of chunked losses in general (Wijmans et al. 2024, "Cut Your Losses", and Hsu
    et al. 2024, "Liger Kernel", section 3.2).

    Matmuls run in the dtype of the hidden states (under autocast: in autocast's), the softmax in
    float32, and the head's gradient is accumulated in float32. ``z_loss`` is as in
    ``CrossEntropy``: part of the loss while training, not in evaluation mode. On a GPU with Triton
    a label outside the vocabulary makes the loss NaN; elsewhere torch raises.
    """

    def __init__(self, z_loss: float = 0.0, max_logits_bytes: int = 1 << 29) -> None:
        """Make the loss.

        Args:
            z_loss: coefficient of the squared log-partition.
            max_logits_bytes: bound on the logits that exist at a time; changes no value beyond
                the order of sums.
        """
        super().__init__()
        self.z_loss = z_loss
        self.max_logits_bytes = max_logits_bytes

    def is_cross_entropy(self) -> bool:
        """Whether no z-loss is added: there is none, or the module is in evaluation mode."""
        return not (self.z_loss and self.training)

    def forward(
        self,
        hidden_states: Tensor,
        head_weight: Tensor,
        labels: Tensor,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> LossOutput:
        """Return the sum and count; float64 hidden states give a float64 sum."""
        head = ChunkedHead(
            scale=scale,
            softcap=softcap,
            z_loss=self.z_loss if self.training else 0.0,
            max_logits_bytes=self.max_logits_bytes,
        )
        hidden = hidden_states.flatten(0, -2).to(_matmul_dtype(hidden_states))
        targets = labels.flatten()
        count = (targets != IGNORE_INDEX).sum()
        if torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad):
            loss_sum: Tensor = _HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
                hidden, head_weight, targets, head
            )
        else:
            loss_sum = _run(hidden, head_weight, targets, *head, False, False)[0]
        return LossOutput(loss_sum, count)


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: BackwardCFunction,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        head: ChunkedHead,
    ) -> Tensor:
        """Return the loss; keep the gradients."""
        needs: tuple[bool, ...] = ctx.needs_input_grad
        loss: Tensor
        loss, *grads = _run(hidden, weight, labels, *head, needs[0], needs[1])
        kept = [grad if needed else None for grad, needed in zip(grads, needs[:2], strict=True)]
        ctx.save_for_backward(*kept)  # type: ignore[arg-type]  # None is fine
        return loss

    @staticmethod
    @once_differentiable
    def backward(
        ctx: BackwardCFunction, grad_loss: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scale the gradients in place.

        A second pass over a kept graph would scale them again; torch sees that they have changed
        since they were saved, and raises.
        """
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
        grad_hidden, grad_weight = saved
        if grad_hidden is not None:
            grad_hidden.mul_(grad_loss / _gradient_scale(grad_hidden.dtype))
        if grad_weight is not None:
            grad_weight.mul_(grad_loss)
        return grad_hidden, grad_weight, None, None


@torch.library.custom_op("foundry_sdk::head_cross_entropy", mutates_args=())
def _run(  # noqa: PLR0917 - an operator's arguments are told by position
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: float,
    softcap: float | None,
    z_loss: float,
    max_logits_bytes: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients by ``hidden`` and ``weight``, empty where not wanted.

    An operator of its own, so that ``torch.compile`` takes it whole: tracing would unroll the
    chunks, and the matmul with a float32 result cannot be traced. The gradient of float16 hidden
    states comes multiplied by ``_FP16_GRADIENT_SCALE``.

    Args:
        hidden: (N, H), in the dtype of the matmuls.
        weight: (V, H), of any dtype.
        labels: int64 (N,).
        scale: this and the next three are the fields of ``ChunkedHead``.
        softcap: see there.
        z_loss: see there.
        max_logits_bytes: see there.
        wants_hidden: whether to compute the gradient by ``hidden``.
        wants_weight: whether to compute the gradient by ``weight``.
    """
    head = ChunkedHead(scale, softcap, z_loss, max_logits_bytes)
    exact = _exact(hidden)
    matrix = weight.to(hidden.dtype)
    losses = torch.empty(labels.shape, dtype=exact, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if wants_hidden else hidden.new_empty(0)
    grad_weight = torch.zeros(
        weight.shape if wants_weight else 0, dtype=exact, device=hidden.device
    )
    rows = _chunk_rows(hidden, vocab_size=weight.shape[0], bound=max_logits_bytes)
    wants_any = wants_hidden or wants_weight
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ matrix.t()
            _differentiate(logits, labels[part], losses[part], head, gradient=wants_any)
            if wants_hidden:
                grad_hidden[part] = logits @ matrix
            if wants_weight:
                _add_outer(grad_weight, logits, hidden[part])
            del logits  # before the next chunk's are made
    return losses.sum(), grad_hidden, grad_weight.to(weight.dtype)


@_run.register_fake
def _(  # noqa: PLR0917 - as above
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: float,  # noqa: ARG001 - the shapes do not depend on it
    softcap: float | None,  # noqa: ARG001
    z_loss: float,  # noqa: ARG001
    max_logits_bytes: int,  # noqa: ARG001
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors of the shapes and dtypes that ``_run`` returns."""
    return (
        labels.new_empty((), dtype=_exact(hidden)),
        torch.empty_like(hidden) if wants_hidden else hidden.new_empty(0),
        weight.new_empty(weight.shape if wants_weight else 0),
    )


def _differentiate(
    logits: Tensor, labels: Tensor, losses: Tensor, head: ChunkedHead, *, gradient: bool
) -> None:
    """Write each token's loss and turn ``logits`` (rows, V) into their gradient, in place."""
    multiplier = _gradient_scale(logits.dtype)
    if logits.is_cuda and logits.dtype != torch.float64 and _HAS_TRITON:
        from foundry_sdk.losses.kernels import softmax_gradient

        softmax_gradient(
            logits,
            labels,
            losses,
            scale=head.scale,
            softcap=head.softcap,
            z_loss=head.z_loss,
            multiplier=multiplier,
            gradient=gradient,
        )
        return
    x = logits.to(losses.dtype)
    if head.scale != 1.0:
        x = x * head.scale
    capped = None if head.softcap is None else torch.tanh(x / head.softcap)
    if head.softcap is not None and capped is not None:
        x = head.softcap * capped
    counted = labels != IGNORE_INDEX
    targets = labels.where(counted, 0).unsqueeze(1)
    partition = x.logsumexp(dim=1, keepdim=True)
    each = partition - x.gather(1, targets) + head.z_loss * partition.square()
    losses.copy_(each.squeeze(1).where(counted, 0))
    if not gradient:
        return
    slope = (x - partition).exp_()
    slope.mul_(1 + 2 * head.z_loss * partition)
    slope.scatter_add_(1, targets, torch.full_like(partition, -1.0))
    if capped is not None:
        slope.mul_(1 - capped.square())
    slope.mul_(head.scale * multiplier)
    logits.copy_(slope.masked_fill_(~counted.unsqueeze(1), 0))


def _add_outer(total: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Do ``total += grad_logits.T @ hidden`` with sums in ``total``'s dtype."""
    share = 1 / _gradient_scale(hidden.dtype)
    if hidden.dtype == total.dtype:
        total.addmm_(grad_logits.t(), hidden, alpha=share)
    elif hidden.is_cuda:
        torch.addmm(total, grad_logits.t(), hidden, out_dtype=total.dtype, alpha=share, out=total)
    else:
        total.addmm_(grad_logits.t().to(total.dtype), hidden.to(total.dtype), alpha=share)


def _gradient_scale(dtype: torch.dtype) -> float:
    """Return what gradients of logits of ``dtype`` are multiplied by while they are kept."""
    return _FP16_GRADIENT_SCALE if dtype == torch.float16 else 1.0


def _exact(hidden: Tensor) -> torch.dtype:
    """Return the dtype of softmax and sums: float32, float64 for float64."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _matmul_dtype(hidden_states: Tensor) -> torch.dtype:
    """Return the dtype that a linear layer would compute in here."""
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device) and hidden_states.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_states.dtype


def _chunk_rows(hidden: Tensor, *, vocab_size: int, bound: int) -> int:
    """Return how many tokens a chunk has, so that its logits fit ``bound`` and chunks are even."""
    tokens = hidden.shape[0]
    most = max(1, bound // (vocab_size * hidden.element_size()))
    chunks = -(-tokens // most)
    even = -(-tokens // max(1, chunks))
    rounded = -(-even // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return max(1, rounded if rounded <= most else even)
