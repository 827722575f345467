"""``hf_causal_lm`` against plain transformers: losses, gradients, packing, initial values."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))

from families import VOCABULARY, make, rows, saved

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.errors import SpecError
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.huggingface.causal_lm import HFCausalLM, document_positions
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.training.objective import Objective

MAIN = ("gpt2", "llama", "mistral", "qwen2", "gpt_neox")
HEADS = ("gemma2", "cohere", "granite")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: saved(family, root) for family in (*MAIN, *HEADS, "phi", "mixtral")}


def built(folder: Path, **fields: Any) -> HFCausalLM:
    model = HFCausalLMSpec(pretrained_model_name_or_path=str(folder), **fields).build(device="cpu")
    model.init_weights(3)
    return model


def batch_of(ids: torch.Tensor, ignored: int = 3) -> Batch:
    """Return next-token labels, the first few of each row left out."""
    labels = F.pad(ids[:, 1:], (0, 1), value=IGNORE_INDEX)
    labels[:, :ignored] = IGNORE_INDEX
    return Batch(input_ids=ids, labels=labels)


def transformers_loss(model: Any, ids: torch.Tensor, ignored: int = 3) -> torch.Tensor:
    """Return the mean that transformers computes of its own labels, which are not shifted."""
    labels = ids.clone()
    labels[:, : ignored + 1] = IGNORE_INDEX
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", [*MAIN, *HEADS])
def test_loss_and_gradients_are_those_of_transformers(
    folders: dict[str, Path], family: str, fused: bool
) -> None:
    reference = make(family)
    ids = rows(3, 20)
    expected = transformers_loss(reference, ids)
    expected.backward()
    model = built(folders[family])
    loss = FusedCrossEntropySpec() if fused else CrossEntropySpec()
    loss_sum, count = Objective(model, loss.build())(batch_of(ids))
    (loss_sum / count).backward()
    assert float((loss_sum / count).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    theirs = dict(reference.named_parameters())
    ours = dict(model.model.named_parameters())
    assert set(ours) == set(theirs)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def test_a_head_that_is_no_plain_product_is_left_to_the_model(folders: dict[str, Path]) -> None:
    model = built(folders["phi"])
    ids = rows(2, 12)
    assert model.head_weight() is None
    assert "bias" in model.choices()["model.head"]
    torch.testing.assert_close(model.logits(model(batch_of(ids))), make("phi")(ids).logits)
    with pytest.raises(SpecError, match="torch_crossentropy"):
        Objective(model, FusedCrossEntropySpec().build())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*MAIN, "phi", "mixtral"])
def test_packed_documents_do_not_see_each_other(
    folders: dict[str, Path], family: str, attention: Any
) -> None:
    model = built(folders[family], attn_implementation=attention).eval()
    reference = make(family).eval()
    ids = rows(2, 22)
    cuts = [[0, 5, 14, 22], [0, 1, 10, 22]]
    sequence_ids = torch.stack(
        [torch.cat([torch.full((b - a,), n) for n, (a, b) in enumerate(pairwise(c))]) for c in cuts]
    )
    sequence_ids[1, 10:] = -1  # padding
    batch = Batch(input_ids=ids, labels=ids, sequence_ids=sequence_ids)
    packed = model.logits(model(batch))
    for row, cut in enumerate(cuts):
        for start, end in pairwise(cut):
            if sequence_ids[row, start] >= 0:
                alone = reference(ids[row : row + 1, start:end]).logits[0]
                torch.testing.assert_close(packed[row, start:end], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "bloom"])
def test_a_model_that_cannot_isolate_refuses_packed_rows(tmp_path: Path, family: str) -> None:
    model = built(saved(family, tmp_path))
    ids = rows(1, 8)
    plain = model.eval().logits(model(Batch(input_ids=ids, labels=ids)))
    torch.testing.assert_close(plain, make(family).eval()(ids).logits)
    with pytest.raises(ValueError, match="see each other"):
        model(Batch(input_ids=ids, labels=ids, sequence_ids=torch.zeros_like(ids)))


def test_positions_begin_again_with_each_document() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 2, 2, -1, -1], [5, 5, 5, 5, 5, 5, 5, 5]])
    assert document_positions(ids).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], list(range(8))]


class Reads(TorchDispatchMode):
    """Keeps what would have to wait for a device: each value that comes to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"}:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", MAIN)
def test_a_forward_waits_for_no_value_of_the_device(
    folders: dict[str, Path], family: str, attention: Any
) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as FUNCTIONS

    model, ids = built(folders[family], attn_implementation=attention), rows(2, 16)
    before = FUNCTIONS[attention]
    with Reads() as ours:
        model(batch_of(ids))
    assert ours.seen == []
    assert FUNCTIONS[attention] is before
    with Reads() as plain:
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if attention == "sdpa" and family != "mistral":  # a window is a mask in any case
        assert plain.seen  # what it is about; else this test sees nothing


@pytest.mark.parametrize("family", MAIN)
def test_padding_on_the_right_changes_nothing(folders: dict[str, Path], family: str) -> None:
    model = built(folders[family]).eval()
    ids = rows(2, 16)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 9:] = False
    padded = model.logits(model(Batch(input_ids=ids, labels=ids, attention_mask=mask)))
    alone = make(family).eval()(ids[1:, :9]).logits[0]
    torch.testing.assert_close(padded[1, :9], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="left"):
        model(Batch(input_ids=ids, labels=ids, attention_mask=mask.flip(1)))


@pytest.mark.parametrize("family", [*MAIN, *HEADS, "mixtral"])
def test_new_weights_follow_the_rules_of_transformers(
    folders: dict[str, Path], family: str
) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folders[family])
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    theirs = dict(model.named_parameters())
    ours = dict(built(folders[family], pretrained=False).model.named_parameters())
    assert set(ours) == set(theirs)
    for name, parameter in ours.items():
        expected = theirs[name]
        if float(expected.std()) == 0:
            assert torch.equal(parameter, expected), name
        elif expected.numel() > 400:
            assert float(parameter.detach().std()) == pytest.approx(
                float(expected.std()), rel=0.15
            ), name
            assert (
                abs(float(parameter.mean())) < 5 * float(expected.std()) / expected.numel() ** 0.5
            )


def test_new_weights_depend_on_the_seed_alone(folders: dict[str, Path]) -> None:
    spec = HFCausalLMSpec(pretrained_model_name_or_path=str(folders["gpt2"]), pretrained=False)
    values = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(noise)
        model = spec.build(device="cpu")
        model.init_weights(seed)
        values.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_counts_are_those_of_transformers(folders: dict[str, Path]) -> None:
    for family in ("gpt2", "llama"):
        spec = HFCausalLMSpec(pretrained_model_name_or_path=str(folders[family]))
        count = make(family).num_parameters()
        assert spec.parameters() == count
        assert spec.flops_per_token(100) == 6 * count + 12 * 2 * 32 * 100
    # of four experts a token passes two
    spec = HFCausalLMSpec(pretrained_model_name_or_path=str(folders["mixtral"]))
    routed = 2 * 4 * 3 * 32 * 48
    assert spec.flops_per_token(0) == 6 * (spec.parameters() - routed // 2)


def test_the_embeddings_grow_with_the_tokenizer(folders: dict[str, Path]) -> None:
    for family in ("llama", "gpt2"):
        spec = HFCausalLMSpec(
            pretrained_model_name_or_path=str(folders[family]), resize_embeddings=True
        )
        assert spec.for_vocabulary(VOCABULARY) is spec
        model = spec.for_vocabulary(VOCABULARY + 7).build(device="cpu")
        model.init_weights(0)
        assert model.vocab_size == VOCABULARY + 7
        old = make(family).get_input_embeddings().weight
        new = model.model.get_input_embeddings().weight
        assert torch.equal(new[:VOCABULARY], old)
        torch.testing.assert_close(new[VOCABULARY:], old.mean(0).expand(7, -1))


def test_learned_positions_limit_the_length(folders: dict[str, Path]) -> None:
    model = built(folders["gpt2"])
    assert model.max_sequence_length() == 64
    assert built(folders["llama"]).max_sequence_length() is None
    with pytest.raises(ValueError, match="64 positions"):
        model(batch_of(rows(1, 65)))
