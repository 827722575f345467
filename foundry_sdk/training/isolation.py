"""A proof by perturbation that examples which share a row do not see each other.

Every second example of a row is given other tokens. What a model computes for the examples in
between must stay what it was, both times: with the even ones changed and with the odd ones.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.data.finetuning.source import FinetuningSource
from foundry_sdk.errors import RunError
from foundry_sdk.models.language_model import LanguageModel
from foundry_sdk.training.reduced import stand_in

if TYPE_CHECKING:
    from foundry_sdk.models.contract import ModelSpec
    from foundry_sdk.training.assemble import Assembly

_log = logging.getLogger(__name__)

_LEAK: Final = 1e-5
"""Of what a change does to an example itself; float32 rounds at 1e-7."""
_ALONE: Final = 1e-3
"""The same for an example alone: other shapes add up in another order."""
_LOSS: Final = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
"""Of a sum of losses. Nothing else changes, so kernels give the same bits; experts may not."""
_TOKENS: Final = 768
_PADDING: Final = -1
_REMEDY: Final = "the model cannot train on packed rows: leave packing_ratio out"


@attrs.frozen(kw_only=True)
class Isolation:
    """What changing examples does in a packed row; the largest differences of any logit.

    Attributes:
        examples: in the row.
        own: of the examples that were changed.
        others: of the examples that were not.
        alone: of an example in the row and the same one alone.
        about: the model that was looked at.
    """

    examples: int
    own: float
    others: float
    alone: float
    about: str = ""

    def problem(self) -> str | None:
        """Return what is wrong; None = the examples are apart."""
        if not self.own > 0:
            return "its logits do not depend on its tokens, so nothing can be said"
        if not self.others <= _LEAK * self.own:
            return (
                f"changing every second of {self.examples} examples of a row changes the logits of "
                f"the others by {self.others:.2g}: they see each other"
            )
        if not self.alone <= _ALONE * self.own:
            return (
                f"an example's logits differ by {self.alone:.2g} from what they are alone in a "
                "row: its positions do not begin again, or it sees its neighbours"
            )
        return None


def look_at_model(spec: "ModelSpec", batch: Batch, *, seed: int) -> Isolation | str:
    """Look at a small model with the attention of ``spec``, on a CPU in float32.

    Args:
        spec: of the run's model.
        batch: packed rows of the run.
        seed: of the initial weights.

    Returns:
        What was found, or why no such model can be looked at.

    Raises:
        RunError: examples see each other.
    """
    check_positions(batch)
    found = stand_in(spec)
    if isinstance(found, str):
        return found
    model = found.spec.build(device="cpu")
    model.init_weights(seed)
    try:
        isolation = attrs.evolve(isolation_of(model, batch), about=found.about)
    except ValueError as error:  # a model that says itself that it cannot
        raise RunError(f"packing, looked at in {found.about}: {error}") from error
    problem = isolation.problem()
    if problem is not None:
        raise RunError(f"packing, looked at in {isolation.about}: {problem}; {_REMEDY}")
    return isolation


def isolation_of(model: LanguageModel, batch: Batch) -> Isolation:
    """Change examples of the fullest row of ``batch``, and look at all logits.

    Args:
        model: on the CPU, with float32 parameters.
        batch: packed rows; their tokens are taken modulo the model's vocabulary, and long examples
            are cut.
    """
    longest = model.max_sequence_length() or _TOKENS
    examples = [ids % model.vocab_size for ids in _examples(batch, min(_TOKENS, longest))]
    row, apart = _rows([examples]), _rows([[ids] for ids in examples])
    was_training = model.training
    model.eval()
    own = others = 0.0
    try:
        with torch.no_grad():
            before = model.logits(model(row))
            for changed, touched in _changes(row, model.vocab_size):
                moved = (model.logits(model(changed)) - before).abs().amax(-1)
                own = max(own, _largest(moved[touched]))
                others = max(others, _largest(moved[~touched]))
            single = model.logits(model(apart))
    finally:
        model.train(was_training)
    flat = single[apart.sequence_ids != _PADDING]
    alone = _largest((flat - before[0]).abs())
    return Isolation(examples=len(examples), own=own, others=others, alone=alone)


def check_run(assembly: "Assembly") -> None:
    """Look at the run's own model once, before its first step; every rank calls this.

    Only sums of losses are compared, which is what a sharded model gives.

    Raises:
        RunError: examples of a packed row see each other.
    """
    source, runtime = assembly.source, assembly.runtime
    if not isinstance(source, FinetuningSource):
        return
    batch = source.packed_rows(1)
    if batch is None:
        return
    check_positions(batch)
    objective, vocabulary = assembly.objective, assembly.core.model.vocab_size
    was_training = objective.training
    objective.eval()
    worst = 0.0
    try:
        with torch.no_grad(), _eager(assembly.core.model):
            for changed, touched in _changes(batch, vocabulary):
                labels = batch.labels.masked_fill(touched, IGNORE_INDEX)
                with runtime.autocast():
                    pair = [
                        objective(attrs.evolve(each, labels=labels).to(runtime.device)).loss_sum
                        for each in (batch, changed)
                    ]
                before, after = torch.stack(pair).double().tolist()
                worst = max(worst, abs(after - before) / max(abs(before), 1e-6))
    finally:
        objective.train(was_training)
        runtime.reshard(objective)
    with runtime.autocast():
        device = runtime.device.type
        is_mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_mixed else torch.float32
    if not runtime.all_agree(worst <= _LOSS[dtype]):
        raise RunError(
            "packing: giving every second example of a row other tokens changes the loss of the "
            f"others by {worst:.2g} of it: they see each other; {_REMEDY}"
        )
    if runtime.rank == 0:
        _log.info("packing: no example sees another (the others' loss moves by %.2g)", worst)


def check_positions(batch: Batch) -> None:
    """Check that the positions of each example of a row count from 0.

    Raises:
        RunError: they do not.
    """
    if batch.sequence_ids is None or batch.position_ids is None:
        raise RunError(f"packing: rows do not say which example a token is of; {_REMEDY}")
    for documents, positions in zip(batch.sequence_ids, batch.position_ids, strict=True):
        for number in documents[documents != _PADDING].unique():
            own = positions[documents == number]
            if not torch.equal(own, torch.arange(len(own))):
                raise RunError(f"packing: positions of an example are {own.tolist()!r:.80}")


def _changes(batch: Batch, vocabulary: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batch with every second example changed, and where that is, bool (B, S)."""
    assert batch.sequence_ids is not None  # noqa: S101 - packed
    other = (batch.input_ids + max(1, vocabulary // 2)) % vocabulary
    for parity in (0, 1):
        touched = (batch.sequence_ids % 2 == parity) & (batch.sequence_ids != _PADDING)
        yield attrs.evolve(batch, input_ids=torch.where(touched, other, batch.input_ids)), touched


def _examples(batch: Batch, limit: int) -> list[Tensor]:
    """Return the ids of each example of the row with the most, cut so that all fit."""
    assert batch.sequence_ids is not None  # noqa: S101 - packed
    row = int(batch.sequence_ids.amax(dim=1).argmax())
    documents = batch.sequence_ids[row]
    count = min(int(documents.max()) + 1, limit // 4)
    found = [batch.input_ids[row][documents == number] for number in range(count)]
    share = min(1.0, (limit - count) / sum(map(len, found)))
    return [ids[: max(1, int(len(ids) * share))] for ids in found]


def _rows(rows: list[list[Tensor]]) -> Batch:
    """Return rows of examples, padded on the right."""
    width = max(sum(map(len, row)) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    documents = torch.full_like(input_ids, _PADDING)
    positions = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        start = 0
        for number, ids in enumerate(row):
            part = slice(start, start + len(ids))
            input_ids[index, part] = ids
            documents[index, part] = number
            positions[index, part] = torch.arange(len(ids))
            start += len(ids)
    return Batch(
        input_ids=input_ids,
        labels=torch.full_like(input_ids, IGNORE_INDEX),
        attention_mask=documents != _PADDING,
        sequence_ids=documents,
        position_ids=positions,
    )


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _eager(model: LanguageModel) -> AbstractContextManager[object]:
    """Compile nothing for these few forwards: a step's graphs are another's."""
    if not any(getattr(block, "_compiled_call_impl", None) for block in model.blocks()):
        return nullcontext()
    context: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return context
