import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.state import load_into, model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.errors import CheckpointError


class Tied(nn.Module):
    """Embedding and head share a tensor; one buffer is saved and one is not."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.block = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("cache", torch.arange(3.0), persistent=False)

    def forward(self, ids):
        return self.head(self.norm(self.block(self.embed(ids))))


def train(model, optimizer, steps, *, start=0):
    losses = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(6, (5,), generator=generator)
        loss = model(ids).logsumexp(-1).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9)),
    "fused adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "no state": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.1),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.1),
}


def build(make):
    torch.manual_seed(0)
    model = Tied()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return model, make([{"params": decayed, "weight_decay": 0.1}, {"params": rest}])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder, name, before):
    model, optimizer = build(OPTIMIZERS[name])
    train(model, optimizer, before)
    store = CheckpointStore(folder, SoloRanks())
    store.save(before, *model_and_optimizer_tensors(model, optimizer), {})
    oracle = train(model, optimizer, 4, start=before)

    torch.manual_seed(99)
    fresh, _ = build(OPTIMIZERS[name])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    decayed = [p for p in fresh.parameters() if p.dim() > 1]
    rest = [p for p in fresh.parameters() if p.dim() <= 1]
    own = OPTIMIZERS[name]([{"params": decayed, "weight_decay": 0.1}, {"params": rest}])
    load_into(store, store.newest(), fresh, own)
    assert train(fresh, own, 4, start=before) == oracle
    reference = torch.optim.Optimizer.state_dict(optimizer)
    resumed = torch.optim.Optimizer.state_dict(own)
    assert resumed["param_groups"] == reference["param_groups"]


def test_names_are_the_model_s_own_and_each_tensor_is_there_once():
    tensors, _ = model_and_optimizer_tensors(Tied())
    assert sorted(tensors) == [
        "model.block.bias",
        "model.block.weight",
        "model.embed.weight",
        "model.norm.bias",
        "model.norm.num_batches_tracked",
        "model.norm.running_mean",
        "model.norm.running_var",
        "model.norm.weight",
        "model.table",
    ]


def test_wrappers_leave_no_trace_in_names(ranks):
    def work(_):
        plain = Tied()
        optimizer = torch.optim.AdamW(plain.parameters())
        train(plain, optimizer, 1)
        expected = set(model_and_optimizer_tensors(plain, optimizer)[0])
        plain.block = torch.compile(checkpoint_wrapper(plain.block), backend="eager")
        wrapped = nn.parallel.DistributedDataParallel(torch.compile(plain, backend="eager"))
        tensors, scalars = model_and_optimizer_tensors(wrapped, optimizer)
        assert set(tensors) == expected
        assert set(scalars["optimizer"]["state"]) == {
            name.removeprefix("model.")
            for name in tensors
            if name.startswith("model.")
            and not any(part in name for part in ("table", "running", "tracked"))
        }

    assert ranks(1, work) == [0]


def test_weights_alone_load_without_the_optimizer(folder):
    model, optimizer = build(OPTIMIZERS["adamw"])
    train(model, optimizer, 2)
    store = CheckpointStore(folder, SoloRanks())
    store.save(2, *model_and_optimizer_tensors(model, optimizer), {})
    other = Tied()
    load_into(store, store.newest(), other)
    for name, tensor in model.state_dict().items():
        if name != "cache":
            assert torch.equal(other.state_dict()[name], tensor), name


def test_weights_saved_alone_are_no_optimizer_state(folder):
    model, optimizer = build(OPTIMIZERS["no state"])
    store = CheckpointStore(folder, SoloRanks())
    store.save(1, *model_and_optimizer_tensors(model), {})
    load_into(store, store.newest(), Tied())
    with pytest.raises(CheckpointError, match="load_weights_only"):
        load_into(store, store.newest(), model, optimizer)


def test_another_optimizer_is_refused_by_name(folder):
    model, optimizer = build(OPTIMIZERS["momentum"])
    train(model, optimizer, 1)
    store = CheckpointStore(folder, SoloRanks())
    store.save(1, *model_and_optimizer_tensors(model, optimizer), {})
    other = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="optimizer is SGD, the run's is AdamW"):
        load_into(store, store.newest(), model, other)


def test_other_parameter_groups_are_refused_with_their_sizes(folder):
    model, optimizer = build(OPTIMIZERS["momentum"])
    store = CheckpointStore(folder, SoloRanks())
    store.save(1, *model_and_optimizer_tensors(model, optimizer), {})
    other = torch.optim.SGD(model.parameters(), momentum=0.9)
    with pytest.raises(CheckpointError, match=r"2 \+ 3 parameters, here 5"):
        load_into(store, store.newest(), model, other)


def test_the_optimizer_s_own_hyperparameters_count_and_a_difference_is_said(folder, caplog):
    model, optimizer = build(OPTIMIZERS["momentum"])
    store = CheckpointStore(folder, SoloRanks())
    store.save(1, *model_and_optimizer_tensors(model, optimizer), {})
    for group in optimizer.param_groups:
        group["momentum"] = 0.5
    load_into(store, store.newest(), model, optimizer)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert "optimizer.momentum: 0.5 from now on, 0.9 in the checkpoint" in caplog.text


def test_a_foreign_parameter_is_said():
    model = Tied()
    optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    with pytest.raises(CheckpointError, match=r"shape \[2, 2\] that is not the model's"):
        model_and_optimizer_tensors(model, optimizer)


def test_strict_false_leaves_what_is_new_alone(folder):
    store = CheckpointStore(folder, SoloRanks())
    model = Tied()
    store.save(1, *model_and_optimizer_tensors(model), {})
    larger = nn.ModuleDict({"extra": nn.Linear(2, 2)})
    for name, child in copy.deepcopy(model).named_children():
        larger[name] = child
    before = larger["extra"].weight.clone()
    with pytest.raises(CheckpointError, match=r"2 tensor\(s\) missing"):
        load_into(store, store.newest(), larger)
    with torch.no_grad():
        larger["block"].weight.zero_()
    load_into(store, store.newest(), larger, strict=False)
    assert torch.equal(larger["extra"].weight, before)
    assert torch.equal(larger["block"].weight, model.block.weight)
