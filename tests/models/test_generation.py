"""Generation: batches, both readers, and how a token is chosen."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models import generation
from foundry_sdk.models.generation import Sampling, choose, generate, stream
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.models.readers import RereadingReader, reader_of

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .\0"


class Letters:
    """A tokenizer of one token a character; the last one ends a text."""

    bos_token_id = None
    eos_token_id = len(CHARACTERS) - 1

    def __len__(self) -> int:
        return len(CHARACTERS)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [CHARACTERS.index(letter) for letter in text]}

    def decode(
        self,
        ids: list[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        assert skip_special_tokens
        return "".join(CHARACTERS[token] for token in ids if token != self.eos_token_id)


def tiny(**attention: Any) -> Any:
    spec = MPTSpec(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=24,
        vocab_size=40,  # more than the tokenizer knows
        attn_config=AttentionSpec(attn_impl="torch", **attention),
    )
    model = spec.build(device="cpu").eval()
    model.init_weights(8)
    return model


def greedy_by_hand(model: Any, prompt: str, count: int) -> str:
    ids = Letters()(prompt)["input_ids"]
    for _ in range(count):
        tensor = torch.tensor([ids])
        with torch.no_grad():
            logits = model.logits(model(Batch(input_ids=tensor, labels=tensor)))[0, -1]
        token = int(logits[: len(CHARACTERS)].argmax())
        if token == Letters.eos_token_id or len(ids) == 24:
            break
        ids.append(token)
    return Letters().decode(ids, skip_special_tokens=True)[len(prompt) :]


@pytest.mark.parametrize("attention", [{}, {"alibi": True}, {"rope": True}], ids=str)
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_rows_of_a_batch_are_those_of_each_prompt_alone(
    attention: dict[str, Any], cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(**attention)
    if not cached:
        monkeypatch.setattr(generation, "reader_of", RereadingReader)
    prompts = ["the cat sat", "a", "hello there world."]
    written = generate(model, Letters(), prompts, max_new_tokens=15)
    assert written == [greedy_by_hand(model, prompt, 15) for prompt in prompts]


def test_a_row_ends_at_the_end_token_and_the_others_go_on() -> None:
    end = Letters.eos_token_id

    class Script:
        """Says what it is told to; the first row ends at its second token."""

        def __init__(self) -> None:
            self.says = iter([[0, 1], [end, 2], [3, 3]])

        def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
            del input_ids, lengths
            return torch.nn.functional.one_hot(torch.tensor(next(self.says)), 40).float()

        def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
            return self.start(tokens, positions)

    steps = generation._tokens(
        Script(),
        [[5], [6, 7]],
        device=torch.device("cpu"),
        max_new_tokens=3,
        max_length=None,
        ends={end},
        known=30,
        sampling=Sampling(),
    )
    assert list(steps) == [[0, 1], [None, 2], [None, 3]]


def test_a_prompt_that_fills_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt has 24 tokens, the model takes 24"):
        generate(tiny(), Letters(), ["a" * 24], max_new_tokens=1)


def test_the_stream_is_the_text_in_pieces() -> None:
    model = tiny()
    pieces = list(
        stream(
            reader_of(model),
            Letters(),
            "the ",
            device=torch.device("cpu"),
            max_new_tokens=9,
            max_length=24,
            sampling=Sampling(temperature=1.0, seed=3),
            ends={Letters.eos_token_id},
        )
    )
    whole = generate(model, Letters(), ["the "], max_new_tokens=9, temperature=1.0, seed=3)
    assert "".join(pieces) == whole[0]
    assert len(pieces) > 1


def test_the_seed_decides_what_is_drawn() -> None:
    def draw(seed: int) -> list[str]:
        return generate(
            tiny(), Letters(), ["a", "b"], max_new_tokens=12, temperature=2.0, seed=seed
        )

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def frequencies(sampling: Sampling, logits: Tensor, draws: int = 4000) -> dict[int, float]:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(choose(logits[None], sampling, [generator])[0] for _ in range(draws))
    return {token: count / draws for token, count in counts.items()}


def test_temperature_top_k_and_top_p_draw_from_their_distributions() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    logits = probabilities.log()
    plain = frequencies(Sampling(temperature=1.0), logits)
    for token, probability in enumerate(probabilities.tolist()):
        assert plain[token] == pytest.approx(probability, abs=0.03)
    sharp = frequencies(Sampling(temperature=0.5), logits)
    assert sharp[0] == pytest.approx(0.25 / (0.25 + 0.0625 + 0.0225 + 0.01), abs=0.03)
    two = frequencies(Sampling(temperature=1.0, top_k=2), logits)
    assert two == {0: pytest.approx(2 / 3, abs=0.03), 1: pytest.approx(1 / 3, abs=0.03)}
    nucleus = frequencies(Sampling(temperature=1.0, top_p=0.7), logits)
    assert set(nucleus) == {0, 1}
    assert set(frequencies(Sampling(temperature=1.0, top_p=0.1), logits)) == {0}


def test_top_k_of_a_greedy_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="need a temperature above 0"):
        Sampling(top_k=3)


SHARDED = """
import sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, sys.argv[1])
from test_generation import Letters, tiny
from foundry_sdk.models.generation import generate

dist.init_process_group("gloo")
options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 4}
prompts = ["the cat", "a"]
expected = generate(tiny(rope=True), Letters(), prompts, **options)
model = tiny(rope=True)
mesh = init_device_mesh("cpu", (2,))
for block in model.blocks():
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
model.unshard()
written = generate(model, Letters(), prompts, **options)
assert written == expected, (written, expected)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_sharded_model_writes_what_a_whole_one_writes(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


class Dictation:
    """Says one text, token by token."""

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        self._says = iter(ids)
        self._vocabulary = vocabulary

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        token = torch.tensor([next(self._says)])
        return torch.nn.functional.one_hot(token, self._vocabulary).float()

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.start(tokens, positions)


TEXT = "naïve café 漢字かな 🙂👩‍👩‍👧  two  spaces , a comma .\n\tdef f(x):\n  return 'x'\n" * 6


@pytest.mark.parametrize("stop", [None, "<stop>", " return"])
def test_a_long_stream_is_what_decoding_it_at_once_says(stop: str | None) -> None:
    data = os.environ.get("FOUNDRY_TEST_DATA")
    if data is None:
        pytest.skip("FOUNDRY_TEST_DATA does not name the folder with gpt-neox-20b/")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{data}/gpt-neox-20b")
    ids = tokenizer(TEXT)["input_ids"]
    pieces = list(
        stream(
            Dictation([*ids, tokenizer.eos_token_id], len(tokenizer)),
            tokenizer,
            "A text:",
            device=torch.device("cpu"),
            max_new_tokens=len(ids) + 1,
            max_length=None,
            sampling=Sampling(),
            ends={tokenizer.eos_token_id},
            stop=stop,
        )
    )
    expected = TEXT if stop is None else TEXT.partition(stop)[0]
    assert "".join(pieces) == expected
    assert len(ids) > 200
    assert len(pieces) > len(tokenizer(expected)["input_ids"]) / 3
