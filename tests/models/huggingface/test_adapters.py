"""What ``peft_config`` takes and refuses."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import LORA, make, rows, saved

from foundry_sdk.batch import Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.losses.specs import CrossEntropySpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.optim.groups import param_groups
from foundry_sdk.optim.specs import AdamWSpec
from foundry_sdk.training.objective import Objective

pytest.importorskip("peft")


def spec(folder: Path | str, **values: Any) -> HFCausalLMSpec:
    return HFCausalLMSpec(pretrained_model_name_or_path=str(folder), peft_config=LORA | values)


def test_adapters_begin_as_nothing_and_alone_have_gradients(tmp_path: Path) -> None:
    model = spec(saved("llama", tmp_path)).build(device="cpu")
    model.init_weights(5)
    ids = rows(2, 10)
    batch = Batch(input_ids=ids, labels=ids)
    torch.testing.assert_close(model.logits(model(batch)), make("llama")(ids).logits)
    Objective(model, CrossEntropySpec().build())(batch).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is ("lora_" in name), name
    groups = param_groups(model.named_parameters(), AdamWSpec())
    assert len(groups[0]["params"]) == 2 * 2 * 2  # A and B of queries and values of two layers


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = spec(saved("qwen2", tmp_path), lora_alpha=16).build(device="cpu")
    model.init_weights(5)
    theirs = get_peft_model(make("qwen2"), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16))
    ours = dict(model.model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                own = ours[name.removeprefix("base_model.model.")]
                own.copy_(torch.randn_like(own))
                parameter.copy_(own)
    ids = rows(2, 10)
    expected = theirs(input_ids=ids, labels=ids).loss
    expected.backward()
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    loss_sum, count = Objective(model, CrossEntropySpec().build())(
        Batch(input_ids=ids, labels=labels)
    )
    (loss_sum / count).backward()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            own = ours[name.removeprefix("base_model.model.")]
            torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    for values, text in (
        ({"peft_type": "IA3"}, "peft_type: expected LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type: expected CAUSAL_LM"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected true or 'gaussian'"),
    ):
        with pytest.raises(ValueError, match=text):
            spec(folder, **values)
    assert spec(folder, peft_type="lora", task_type="causal_lm").peft_config is not None
    with pytest.raises(SpecError, match=r"not found in the base model.*q_proj"):
        spec(folder, target_modules=["query"]).build(device="cpu")
    with pytest.raises(SpecError, match="rank"):
        spec(folder, rank=4).build(device="cpu")


def test_an_adapter_on_the_head_leaves_it_to_the_model(tmp_path: Path) -> None:
    model = spec(saved("llama", tmp_path), target_modules=["lm_head"]).build(device="cpu")
    model.init_weights(0)
    assert model.head_weight() is None
    assert "adapter" in model.choices()["model.head"]
    ids = rows(1, 6)
    logits = model.logits(model(Batch(input_ids=ids, labels=ids)))
    torch.testing.assert_close(logits, make("llama")(ids).logits)
