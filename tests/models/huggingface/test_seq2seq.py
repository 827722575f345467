"""``hf_t5`` against plain transformers."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import make, rows, saved

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec
from foundry_sdk.training.objective import Objective


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_loss_and_gradients_are_those_of_transformers(
    tmp_path: Path, family: str, fused: bool
) -> None:
    folder = saved(family, tmp_path)
    reference = make(family)
    ids, labels = rows(3, 12), rows(3, 7, seed=2)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = False
    labels[2, 4:] = IGNORE_INDEX
    expected = reference(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    decoder_ids = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=0)
    batch = Batch(
        input_ids=ids,
        labels=labels,
        attention_mask=mask,
        decoder_input_ids=decoder_ids.masked_fill(decoder_ids == IGNORE_INDEX, 0),
    )
    model = HFSeq2SeqSpec(pretrained_model_name_or_path=str(folder)).build(device="cpu")
    model.init_weights(0)
    assert model.head_weight() is not None
    loss = FusedCrossEntropySpec() if fused else CrossEntropySpec()
    loss_sum, count = Objective(model, loss.build())(batch)
    (loss_sum / count).backward()
    assert float((loss_sum / count).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)
    assert model.model.num_parameters() == reference.num_parameters()


def test_what_an_encoder_decoder_refuses(tmp_path: Path) -> None:
    folder = str(saved("t5", tmp_path))
    model = HFSeq2SeqSpec(pretrained_model_name_or_path=folder).build(device="cpu")
    model.init_weights(0)
    ids = rows(1, 5)
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(Batch(input_ids=ids, labels=ids))
    zeros = torch.zeros_like(ids)
    with pytest.raises(ValueError, match="several documents"):
        model(Batch(input_ids=ids, labels=ids, decoder_input_ids=ids, sequence_ids=zeros))
    with pytest.raises(SpecError, match="makes no CausalLM"):
        HFCausalLMSpec(pretrained_model_name_or_path=folder).build(device="cpu")
    decoder = str(saved("gpt2", tmp_path))
    with pytest.raises(SpecError, match="makes no Seq2SeqLM"):
        HFSeq2SeqSpec(pretrained_model_name_or_path=decoder).build(device="cpu")
