"""FSDP2 on gloo ranks: what N ranks save, M ranks load, bit for bit."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from foundry_sdk.checkpoint import tensors as tensors_module
from foundry_sdk.checkpoint.state import load_into, model_and_optimizer_tensors
from foundry_sdk.checkpoint.store import CheckpointStore


class Model(nn.Module):
    """Rows that divide over no number of ranks, and fewer rows than ranks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.out = nn.Linear(6, 1)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, ids):
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = block(hidden).tanh()
        return self.out(hidden)


def build(world_size, seed):
    torch.manual_seed(seed)
    model = Model()
    if world_size > 1:
        mesh = init_device_mesh("cpu", (world_size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model, optimizer, steps):
    ids = torch.arange(7)
    for _ in range(steps):
        model(ids).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensors):
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in tensors.items()
    }


def save_on(ranks, folder, world_size):
    def work(peers):
        model, optimizer = build(world_size, seed=0)
        train(model, optimizer, 3)
        tensors, scalars = model_and_optimizer_tensors(model, optimizer)
        store = CheckpointStore(folder, peers)
        saved = store.save(3, tensors, scalars, {"rank": peers.rank})
        gathered = whole(tensors)
        if peers.rank == 0:
            torch.save(gathered, folder / "expected.pt")
            kinds = {path.suffix for path in saved.path.iterdir()}
            assert kinds == {".json", ".safetensors"}

    assert ranks(world_size, work) == [0] * world_size


def load_on(ranks, folder, world_size, saved_on):
    def work(peers):
        model, optimizer = build(world_size, seed=5)
        store = CheckpointStore(folder, peers)
        scalars, per_rank = load_into(store, store.newest(), model, optimizer)
        assert per_rank == ({"rank": peers.rank} if world_size == saved_on else None)
        tensors, numbers = model_and_optimizer_tensors(model, optimizer)
        assert numbers == scalars
        expected = torch.load(folder / "expected.pt", weights_only=True)
        actual = whole(tensors)
        assert set(actual) == set(expected)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name
        if world_size > 1:
            assert isinstance(tensors["optimizer.embed.weight.exp_avg"], DTensor)
        train(model, optimizer, 1)

    assert ranks(world_size, work) == [0] * world_size


@pytest.mark.parametrize("saved_on", [1, 2, 3])
def test_saved_on_n_ranks_and_loaded_on_m(folder, ranks, saved_on):
    save_on(ranks, folder, saved_on)
    for world_size in (1, 2, 3):
        load_on(ranks, folder, world_size, saved_on)


def test_tensors_are_spread_over_files_of_bounded_size(folder, ranks, monkeypatch):
    monkeypatch.setattr(tensors_module, "_FILE_BYTES", 100)
    save_on(ranks, folder, 2)
    files = list((folder / "step-000003").glob("*.safetensors"))
    assert len(files) > 6
    load_on(ranks, folder, 2, 2)
    load_on(ranks, folder, 1, 2)


def test_a_forward_that_leaves_weights_gathered_does_not_disturb_a_save(folder, ranks):
    def work(peers):
        model, optimizer = build(2, seed=0)
        train(model, optimizer, 1)
        expected = whole(model_and_optimizer_tensors(model, optimizer)[0])
        model.set_reshard_after_forward(False)
        with torch.no_grad():
            model(torch.arange(7))
        assert not isinstance(next(model.parameters()), DTensor)
        tensors, scalars = model_and_optimizer_tensors(model, optimizer)
        store = CheckpointStore(folder, peers)
        store.save(1, tensors, scalars, {})
        with torch.no_grad():
            model(torch.arange(7))
        load_into(store, store.newest(), model, optimizer)
        actual = whole(model_and_optimizer_tensors(model, optimizer)[0])
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name

    assert ranks(2, work) == [0, 0]


def test_a_replicated_model_is_written_once(folder, ranks):
    def work(peers):
        torch.manual_seed(0)
        tensors = {f"model.{n}": torch.randn(1000) for n in range(4)}
        saved = CheckpointStore(folder, peers).save(1, tensors, {}, {})
        assert 4 * 4000 <= saved.bytes < 4 * 4000 + 8000
        into = {name: torch.zeros(1000) for name in tensors}
        store = CheckpointStore(folder, peers)
        store.load(store.newest(), into)
        for name, value in tensors.items():
            assert torch.equal(into[name], value)

    assert ranks(2, work) == [0, 0]


def test_damage_found_by_one_rank_is_known_to_all(folder, ranks):
    save_on(ranks, folder, 2)
    path = folder / "step-000003" / "rank-00001.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))

    def work(peers):
        store = CheckpointStore(folder, peers)
        with pytest.raises(Exception, match=r"rank-00001\.json: damaged"):
            store.newest()

    assert ranks(2, work) == [0, 0]
