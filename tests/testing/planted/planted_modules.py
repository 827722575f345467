"""What the specs build: each sound but for one fault."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foundry_sdk.batch import IGNORE_INDEX, Batch, LossOutput
from foundry_sdk.data.contract import LoaderContext
from foundry_sdk.events import StepFinished, Stop
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.losses.module import HeadLoss, LogitsLoss
from foundry_sdk.models.init import draw_parameters
from foundry_sdk.models.language_model import LanguageModel


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.1 * grad


def cross_entropy(logits: Tensor, labels: Tensor, fault: str) -> Any:
    ignored = IGNORE_INDEX if fault != "learns all" else -1
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if fault == "half":
        exact = logits
    if fault == "gradient":
        exact = WrongGradient.apply(exact)
    targets = labels.flatten()
    if fault == "learns all":
        targets = targets.clamp(min=0)
    total = functional.cross_entropy(
        exact.flatten(0, -2), targets, reduction="sum", ignore_index=ignored
    )
    count = (labels != IGNORE_INDEX).sum()
    match fault:
        case "mean":
            total = total / count.clamp(min=1)
        case "nan":
            total = total / count * count
        case "double":
            total = total.double()
        case "count":
            count = torch.tensor(labels.numel())
        case "tuple":
            return total, count
        case "other":
            total = 2 * total
    return LossOutput(total, count)


class FaultyLoss(LogitsLoss):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.calls = 0

    def forward(self, logits: Tensor, labels: Tensor) -> LossOutput:
        self.calls += 1
        factor = self.calls if self.fault == "state" else 1
        output: LossOutput = cross_entropy(logits * factor, labels, self.fault)
        return output


class FaultyHeadLoss(HeadLoss):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(
        self,
        hidden_states: Tensor,
        head_weight: Tensor,
        labels: Tensor,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> LossOutput:
        logits = hidden_states @ head_weight.T
        if self.fault != "scale":
            logits = scale * logits
        if softcap is not None and self.fault != "softcap":
            logits = softcap * torch.tanh(logits / softcap)
        output: LossOutput = cross_entropy(logits, labels, self.fault)
        return output


class FaultyModel(LanguageModel):
    def __init__(self, fault: str, device: str) -> None:
        super().__init__()
        self.fault = fault
        self.vocab_size = 11
        self.embed = nn.Embedding(11, 4, device=device)
        self.head = nn.Linear(4, 11, bias=False, device=device)
        if fault == "unused":
            self.head.weight.requires_grad_(True)
            self.embed.weight.requires_grad_(True)
        if fault == "dtype":
            self.embed.to(torch.bfloat16)
        if fault == "buffer":
            self.register_buffer("factor", torch.full((), 2.0, device=device))

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.embed(batch.input_ids).float()
        length = hidden.shape[1]
        match self.fault:
            case "causal":
                return hidden + hidden.mean(1, keepdim=True)
            case "shape":
                return hidden[:, 1:]
            case "random":
                return functional.dropout(hidden, 0.5)
            case "constant":
                return torch.zeros_like(hidden)
            case "buffer":
                return hidden * self.factor
            case "unused":
                hidden = hidden.detach()
        return hidden.cumsum(1) / torch.arange(1, length + 1)[:, None]

    def logits(self, hidden_states: Tensor) -> Tensor:
        logits = functional.linear(hidden_states, self.head.weight)
        match self.fault:
            case "head":
                return logits * 2
            case "logits":
                return logits[..., :-1]
        return logits

    def head_weight(self) -> Tensor:
        return self.head.weight.clone() if self.fault == "copy" else self.head.weight

    def blocks(self) -> list[nn.Module]:
        return [nn.Linear(1, 1)] if self.fault == "blocks" else []

    def config(self) -> dict[str, Any]:
        return {"a": {1, 2}.__iter__() if self.fault == "config" else 1}

    def init_weights(self, seed: int) -> None:
        if self.fault == "global":
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.normal_()
            return
        if self.fault == "seed":
            seed = 0

        def draw(whole: Tensor, generator: torch.Generator) -> Tensor:
            return whole.normal_(generator=generator)

        named = list(self.named_parameters())
        if self.fault == "forgets":
            named = named[:1]
        draw_parameters([(parameter, name, draw) for name, parameter in named], seed=seed)


class FaultyOptimizer(torch.optim.Optimizer):
    def __init__(self, groups: Any, spec: Any) -> None:
        self.fault = spec.fault
        self.secret: dict[int, Tensor] = {}
        initial = {} if self.fault == "initial" else {"initial_lr": spec.lr}
        super().__init__(groups, {"lr": spec.lr, **initial})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        every = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in every if p.grad is not None]
        whole = torch.stack([g.norm() for g in grads]).norm() if grads else None
        for group in self.param_groups:
            lr = group["initial_lr"] if self.fault == "fixed" else group["lr"]
            for number, p in enumerate(group["params"]):
                if p.grad is None:
                    if self.fault == "restless":
                        p.mul_(0.9)
                    continue
                grad = p.grad
                if self.fault == "normalizes":
                    grad = grad / grad.norm()
                if self.fault == "coupled" and whole is not None:
                    grad = grad / (whole + 1)
                if self.fault == "noise":
                    grad = grad + torch.rand_like(grad)
                if self.fault == "secret":
                    buffer = self.secret.setdefault(number, torch.zeros_like(p))
                    self.state[p]["buffer"] = torch.zeros_like(p)
                else:
                    buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.lerp_(grad, 0.5)
                p.add_(buffer, alpha=-lr)
                if self.fault == "explodes":
                    p.div_(0.0)


class Counter:
    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.count = 0

    @hookimpl
    def step_finished(self, event: StepFinished) -> Any:
        self.count += 1
        match self.fault:
            case "raises":
                raise RuntimeError("no")
            case "answer":
                return "done"
            case "metric":
                return {"a": torch.ones(())}
        return Stop(reason="ten") if self.count == 10 else {"count": self.count}

    def state_dict(self) -> dict[str, Any]:
        match self.fault:
            case "tensor":
                return {"count": torch.tensor(self.count)}
            case "tuple":
                return {"count": (self.count,)}
            case "forgets":
                return {"other": 1}
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.fault not in {"forgets", "ignores"}:
            self.count = state["count"]


class Deaf:
    def __init__(self, fault: str) -> None:
        pass


class Unmarked(Deaf):
    def step_finished(self, event: StepFinished) -> None:
        pass


class Misspelt(Deaf):
    @hookimpl
    def step_ended(self, event: StepFinished) -> None:
        pass


class HalfState(Deaf):
    @hookimpl
    def step_finished(self, event: StepFinished) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}


CALLBACKS: dict[str, Any] = {
    "deaf": Deaf,
    "unmarked": Unmarked,
    "misspelt": Misspelt,
    "half": HalfState,
}


class Counting:
    def __init__(self, context: LoaderContext, fault: str) -> None:
        self.context = context
        self.fault = fault
        self.taken = 0
        self.offset = int(torch.randint(100, ())) if fault == "order" else 0

    def __iter__(self) -> Iterator[Batch]:
        rows = self.context.device_batch - (self.fault == "short")
        length = self.context.max_seq_len + (self.fault == "long")
        while self.taken < (2 if self.fault == "few" else 20):
            self.taken += 1
            start = torch.arange(rows)[:, None] + self.taken + self.offset
            tokens = (start + torch.arange(length + 1)) % 250
            labels = tokens[:, :-1] if self.fault == "unshifted" else tokens[:, 1:]
            ids = tokens[:, :-1].clone()
            if self.fault == "vocabulary":
                ids[0, 0] = 1000
            if self.fault == "dtype":
                ids = ids.int()
            if self.fault == "labels":
                labels = torch.full_like(labels, -1)
            if self.fault == "shape":
                labels = labels[:, :-1]
            yield Batch(input_ids=ids, labels=labels.clone())

    def batches_per_epoch(self) -> int:
        return 20

    def state_dict(self) -> dict[str, Any]:
        return {"taken": {1: self.taken} if self.fault == "keys" else self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"] + (self.fault == "position")

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass
