"""Which parameters are trained, and with which settings."""

import pytest
from torch import nn

from foundry_sdk.errors import SpecError
from foundry_sdk.optim.groups import param_groups
from foundry_sdk.optim.specs import DecoupledAdamWSpec, DecoupledLionWSpec


@pytest.fixture
def model():
    return nn.ModuleDict(
        {
            "wte": nn.Embedding(4, 2),
            "blocks": nn.ModuleList(
                [nn.ModuleDict({"norm": nn.LayerNorm(2), "ffn": nn.Linear(2, 2)}) for _ in range(2)]
            ),
        }
    )


def names(model, groups):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [sorted(by_id[id(p)] for p in group["params"]) for group in groups]


def test_without_options_all_parameters_are_one_group(model):
    groups = param_groups(model.named_parameters(), DecoupledAdamWSpec())
    assert names(model, groups) == [sorted(name for name, _ in model.named_parameters())]
    assert set(groups[0]) == {"params"}


def test_first_match_wins_and_the_rest_is_group_0(model):
    spec = DecoupledAdamWSpec(
        lr=1e-3,
        weight_decay=1e-4,
        param_groups=(
            {"param_str_match": r"norm|bias", "weight_decay": 0},
            {"param_str_match": r"^blocks\.1", "lr": 2e-3, "betas": [0.5, 0.6]},
        ),
    )
    groups = param_groups(model.named_parameters(), spec)
    assert names(model, groups) == [
        ["blocks.0.ffn.weight", "wte.weight"],
        [
            "blocks.0.ffn.bias", "blocks.0.norm.bias", "blocks.0.norm.weight",
            "blocks.1.ffn.bias", "blocks.1.norm.bias", "blocks.1.norm.weight",
        ],
        ["blocks.1.ffn.weight"],
    ]  # fmt: skip
    optimizer = spec.build(groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0, 1e-4]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-3, 1e-3, 2e-3]
    assert optimizer.param_groups[2]["betas"] == (0.5, 0.6)


def test_an_empty_rest_makes_no_group(model):
    spec = DecoupledAdamWSpec(param_groups=({"param_str_match": ".", "lr": 0.5},))
    groups = param_groups(model.named_parameters(), spec)
    assert [group["lr"] for group in groups] == [0.5]


@pytest.mark.parametrize("patterns", ["norm", ("norm",), ("0.norm", "1.norm")])
def test_disable_grad_freezes_and_leaves_out(model, patterns):
    groups = param_groups(model.named_parameters(), DecoupledLionWSpec(disable_grad=patterns))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"blocks.{i}.norm.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert not frozen & set(names(model, groups)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"disable_grad": "wtf.weight"}, r"'wtf.weight' matches no parameter; did you mean 'wte"),
        ({"disable_grad": "("}, "is no regex"),
        ({"disable_grad": "."}, "no parameter is left to train"),
        ({"param_groups": ({"lr": 1.0},)}, r"param_groups\[0\]: 'param_str_match' is missing"),
        ({"param_groups": ({"param_str_match": "wte", "weight_decya": 0.0},)}, "'weight_decay'"),
        ({"param_groups": ({"param_str_match": "wte", "params": []},)}, "'params' is not allowed"),
        ({"param_groups": ({"param_str_match": "lm_head"},)}, "matches no parameter"),
        ({"param_groups": ({"param_str_match": "wte", "lr": "fast"},)}, "expected a value like"),
        ({"param_groups": ({"param_str_match": "wte", "lr": True},)}, "expected a value like"),
        ({"param_groups": ({"param_str_match": "wte", "betas": (2, 3)},)}, "betas must be two"),
        ({"param_groups": ({"param_str_match": "wte", "disable_grad": "a"},)}, "no setting"),
        (
            {"param_groups": ({"param_str_match": "wte"}, {"param_str_match": "wte.weight"})},
            r"param_groups\[1\].*an earlier group took",
        ),
        (
            {"disable_grad": "wte", "param_groups": ({"param_str_match": "wte"},)},
            "only parameters that are not trained",
        ),
    ],
)
def test_mistakes_are_named(model, settings, message):
    with pytest.raises(SpecError, match=message):
        param_groups(model.named_parameters(), DecoupledAdamWSpec(**settings))
