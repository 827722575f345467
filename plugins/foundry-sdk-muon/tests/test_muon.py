"""The update against the SVD, a loop in float64 and torch's own Muon; and the contract."""

import math

import pytest
import torch
from foundry_sdk_muon import MuonMonitorSpec, MuonSpec
from foundry_sdk_muon.optimizer import Muon, orthogonalized
from torch import Tensor, nn

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.contract import OptimizerSpec
from foundry_sdk.optim.groups import param_groups
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.testing import check_component, tiny_mpt_spec, tiny_run, tiny_step
from foundry_sdk.testing.moments import TableProbe


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_the_optimizer_conforms() -> None:
    check_component(MuonSpec)
    check_component(MuonSpec(lr=1e-3, scale="rms", weight_decay=0.1, adamw_weight_decay=0.1))


def test_the_monitor_conforms() -> None:
    check_component(MuonMonitorSpec, run=tiny_run(resolved_spec={"optimizer": {"name": "muon"}}))


@pytest.mark.parametrize("shape", [(8, 8), (16, 6), (6, 16)])
def test_singular_vectors_stay_and_singular_values_become_nearly_one(
    shape: tuple[int, int],
) -> None:
    matrix = random(*shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    made = u.T @ orthogonalized(matrix, 5) @ vh.T
    values = made.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert torch.allclose(made, values.diag(), atol=1e-10)  # the very singular vectors


def test_the_scale_of_a_matrix_does_not_matter() -> None:
    matrix = random(5, 9)
    expected = orthogonalized(matrix, 5)
    for factor in (1e-3, 1e3):
        assert torch.allclose(orthogonalized(factor * matrix, 5), expected, atol=1e-3)
    assert not orthogonalized(torch.zeros(3, 4), 5).any()


def test_five_updates_equal_a_loop_written_out() -> None:
    spec = MuonSpec(lr=0.1, weight_decay=0.2)
    parameter = nn.Parameter(random(6, 4))
    optimizer = spec.build([{"params": [parameter]}])
    weight, average = random(6, 4), torch.zeros(6, 4, dtype=torch.float64)
    for step in range(1, 6):
        grad = random(6, 4, seed=step)
        parameter.grad = grad.clone()
        optimizer.step()
        average = 0.95 * average + 0.05 * grad
        x = (0.05 * grad + 0.95 * average).T
        x = x / (torch.sqrt((x**2).sum()) + 1e-7)
        for _ in range(5):
            x = 3.4445 * x - 4.775 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * math.sqrt(6 / 4) * x.T
    assert torch.allclose(parameter, weight, atol=1e-12)


@pytest.mark.parametrize(("scale", "name"), [("shape", "original"), ("rms", "match_rms_adamw")])
def test_torch_makes_the_same_update_in_bfloat16(scale: str, name: str) -> None:
    ours, theirs = (nn.Parameter(random(32, 16).float()) for _ in range(2))
    spec = MuonSpec(lr=0.1, scale=scale, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn=name)
    optimizer = spec.build([{"params": [ours]}])
    for step in range(1, 4):
        before = ours.detach().clone()
        for parameter in (ours, theirs):
            parameter.grad = random(32, 16, seed=step).float()
        optimizer.step()
        reference.step()
        assert (ours - theirs).detach().norm() < 0.03 * step * (ours - before).detach().norm()


def test_what_is_no_matrix_is_updated_as_torch_s_adamw_does() -> None:
    spec = MuonSpec(adamw_lr=0.01, adamw_weight_decay=0.1, adamw_eps=1e-8)
    ours, theirs = (nn.Parameter(random(7)) for _ in range(2))
    optimizer = spec.build([{"params": [ours]}])
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 6):
        for parameter in (ours, theirs):
            parameter.grad = random(7, seed=step)
        optimizer.step()
        reference.step()
    assert torch.allclose(ours, theirs, rtol=1e-10)


def test_embeddings_and_norms_of_a_model_are_under_adamw() -> None:
    model = tiny_mpt_spec().build(device="cpu")
    optimizer = MuonSpec().build(param_groups(model.named_parameters(), MuonSpec()))
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, set[str]] = {"muon": set(), "adamw": set()}
    for group in optimizer.param_groups:
        found[group["algorithm"]] |= {names[id(p)] for p in group["params"]}
    matrices = {"Wqkv", "out_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-2] for name in found["muon"]} == matrices
    assert len(found["muon"]) == 8
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= found["adamw"]
    assert found["muon"] | found["adamw"] == set(names.values())


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight"]
)
def test_names_of_transformers_models_are_known(name: str) -> None:
    hidden, table = nn.Parameter(random(4, 4)), nn.Parameter(random(4, 4))
    named = [("model.layers.0.mlp.up_proj.weight", hidden), (name, table)]
    optimizer = MuonSpec().build(param_groups(named, MuonSpec()))
    by = {group["algorithm"]: group["params"] for group in optimizer.param_groups}
    assert [id(p) for p in by["muon"]] == [id(hidden)]
    assert [id(p) for p in by["adamw"]] == [id(table)]


def test_a_model_with_other_names_must_say_which_its_embeddings_are() -> None:
    named = [("table", nn.Parameter(random(4, 4))), ("inner", nn.Parameter(random(4, 4)))]
    with pytest.raises(SpecError, match="matches no parameter; there are table, inner"):
        param_groups(named, MuonSpec())
    spec = MuonSpec(param_groups=({"param_str_match": "table", "algorithm": "adamw"},))
    optimizer = spec.build(param_groups(named, spec))
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adamw"]


def test_a_group_s_own_settings() -> None:
    named = [(n, nn.Parameter(random(4, 4))) for n in ("wte.weight", "a", "b")]
    spec = MuonSpec(param_groups=({"param_str_match": "^b", "lr": 0.5, "ns_steps": 3},))
    optimizer = spec.build(param_groups(named, spec))
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 3e-4, 0.5]
    useless = MuonSpec(
        param_groups=({"param_str_match": "wte", "algorithm": "adamw", "momentum": 0.5},)
    )
    with pytest.raises(SpecError, match="momentum has no effect in a group with algorithm: adamw"):
        useless.build(param_groups(named, useless))


@pytest.mark.parametrize(
    "fields",
    [{"lr": -1.0}, {"momentum": 1.0}, {"ns_steps": 0}, {"scale": "none"}, {"algorithm": "sgd"}],
)
def test_values_out_of_range(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        MuonSpec(**fields)


def test_vectors_are_refused_by_the_optimizer_itself() -> None:
    group = {"params": [nn.Parameter(random(3))], "algorithm": "muon", "lr": 0.1}
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([group])


def test_the_monitor_s_numbers() -> None:
    probe = TableProbe(
        parameters={"wte": 5.0, "a": 3.0, "b": 4.0},
        gradients={"wte": 7.0, "a": 6.0, "b": 8.0},
        optimizer={"momentum_buffer/a": 3.0, "momentum_buffer/b": 4.0, "moment/wte": 9.0},
    )
    run = tiny_run(resolved_spec={"optimizer": {"name": "muon"}}, probe=probe)
    monitor = MuonMonitorSpec(interval=2).build(run)
    monitor._gradients = probe.gradients
    assert monitor.step_finished(tiny_step(2)) == {
        "muon/matrices": 2,
        "muon/parameters": 3,
        "muon/weight_norm": 5.0,
        "muon/other_weight_norm": 5.0,
        "muon/momentum_norm": 5.0,
        "muon/gradient_norm": 10.0,
        "muon/persistence": 0.5,
    }
    assert monitor.step_finished(tiny_step(3)) is None
    with pytest.raises(SpecError, match="optimizer is 'adamw'"):
        MuonMonitorSpec().build(tiny_run(resolved_spec={"optimizer": {"name": "adamw"}}))


def test_the_installed_plugin_is_found() -> None:
    catalog = PluginHost.from_environment({"FOUNDRY_PLUGINS": "muon"}).catalog()
    assert catalog.find(OptimizerSpec, "muon") is MuonSpec
