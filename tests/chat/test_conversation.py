"""A conversation with a model that says what it is told to, and notes what it was given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foundry_sdk.chat.conversation import Answering, Chat, Exchange
from foundry_sdk.chat.template import find_template
from foundry_sdk.data.finetuning.chatml import CHATML
from foundry_sdk.data.finetuning.examples import checked
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.errors import SpecError
from foundry_sdk.export.writing import Writer
from foundry_sdk.models.generation import Sampling
from foundry_sdk.testing import tiny_tokenizer

EOS = 256


class Parrot:
    """Writes the bytes that it is told to, answer by answer; keeps the prompts."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers = iter(answers)
        self.prompts: list[list[int]] = []
        self._says: Any = iter(())

    def start(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        del lengths
        self.prompts.append(input_ids[0].tolist())
        self._says = iter(next(self.answers))
        return self.step(input_ids, input_ids)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        del tokens, positions
        return torch.nn.functional.one_hot(torch.tensor([next(self._says)]), 258).float() * 50


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return load_tokenizer(tiny_tokenizer(tmp_path / "tokenizer"))


Talk = Callable[..., tuple[Chat, Parrot]]


@pytest.fixture
def talk(tokenizer: Any) -> Talk:
    def begin(
        *answers: str, length: int | None = None, template: str | None = CHATML, **options: Any
    ) -> tuple[Chat, Parrot]:
        ids = [tokenizer(text)["input_ids"] for text in answers]
        parrot = Parrot(*ids)
        writer = Writer(
            reader=parrot,
            tokenizer=tokenizer,
            device=torch.device("cpu"),
            max_length=length,
            ends=frozenset({EOS}),
            encoder_decoder=template is None,
        )
        found = find_template(tokenizer, template, model="parrot")
        new = options.pop("max_new_tokens", 40)
        answering = Answering(max_new_tokens=new, sampling=options.pop("sampling", Sampling()))
        return Chat(writer, found, answering=answering, **options), parrot

    return begin


END = "<|im_end|>\n<eos>"


def test_each_turn_reads_the_whole_conversation(talk: Talk, tokenizer: Any) -> None:
    chat, parrot = talk("4" + END, "6" + END, system="Be short.")
    assert "".join(chat.ask("2 + 2?")) == "4"
    assert chat.ended == "end"
    assert "".join(chat.ask("And 3 + 3?")) == "6"
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
        {"role": "assistant", "content": "6"},
    ]
    assert chat.messages() == messages
    for prompt, known in zip(parrot.prompts, (2, 4), strict=True):
        assert chat.template is not None
        assert prompt == tokenizer.apply_chat_template(
            messages[:known],
            chat_template=chat.template.jinja,
            add_generation_prompt=True,
            return_dict=False,
        )
    assert chat.rows() == [{"messages": messages}]
    checked(chat.rows()[0], "row")  # what a finetuning run takes


def test_pieces_come_as_they_are_written_and_never_more_than_the_answer(talk: Talk) -> None:
    chat, _ = talk("a <|im b é" + END)
    pieces = list(chat.ask("?"))
    assert "".join(pieces) == "a <|im b é"
    assert len(pieces) >= 6  # what may be the beginning of <|im_end|> waits
    assert all(pieces)


def test_undo_and_reset_change_what_is_known(talk: Talk, tokenizer: Any) -> None:
    chat, parrot = talk("1" + END, "2" + END, "3" + END, system="S")
    for question in ("a", "b"):
        list(chat.ask(question))
    assert chat.undo() == Exchange("b", "2")
    list(chat.ask("c"))
    assert "<|im_start|>user\nb" not in tokenizer.decode(parrot.prompts[-1])
    assert [each.user for each in chat.exchanges] == ["a", "c"]
    chat.reset()
    assert chat.messages() == [{"role": "system", "content": "S"}]
    assert chat.undo() is None
    assert chat.rows() == []


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came(talk: Talk) -> None:
    chat, _ = talk("one two three" + END, "x" + END)
    pieces = chat.ask("count")
    said = next(pieces) + next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert chat.ended is None
    assert chat.exchanges == [Exchange("count", said)]
    chat.ask("never read")  # an answer that nobody begins to read was not asked for
    assert len(chat.exchanges) == 1


def test_a_failure_before_the_first_word_leaves_no_trace(talk: Talk) -> None:
    chat, parrot = talk()
    parrot.answers = iter(())

    def interrupted(input_ids: Tensor, lengths: Tensor) -> Tensor:
        raise KeyboardInterrupt

    parrot.start = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("a"))
    assert chat.exchanges == []


def test_the_oldest_exchanges_are_left_out_where_there_is_no_room(
    talk: Talk, tokenizer: Any
) -> None:
    def size(*messages: tuple[str, str]) -> int:
        said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)
        return len(said + "<|im_start|>assistant\n")

    turn = [("user", "aaaa"), ("assistant", "b")]
    fits = size(("system", "S"), *turn, ("user", "aaaa"))
    chat, parrot = talk(*["b" + END] * 4, length=fits + 14, max_new_tokens=14, system="S")
    for left_out in (0, 0, 1, 2):
        list(chat.ask("aaaa"))
        assert chat.left_out == left_out
        assert tokenizer.decode(parrot.prompts[-1]).startswith("<|im_start|>system\nS")
    assert [len(prompt) for prompt in parrot.prompts] == [size(("system", "S"), turn[0])] + 3 * [
        fits
    ]
    assert len(chat.exchanges) == 4
    chat.undo()
    assert chat.left_out == 0  # it is found out again


@pytest.mark.parametrize(("new", "kept_free"), [(14, 14), (1000, 60)])
def test_room_for_an_answer_is_kept_free(talk: Talk, new: int, kept_free: int) -> None:
    """As much as is asked for, but no more than a quarter of the model's 240 tokens."""
    said = len("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n")
    begun = len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")
    for more, left_out in ((0, 0), (1, 1)):
        chat, _ = talk("b" + END, "b" + END, length=240, max_new_tokens=new)
        list(chat.ask("a"))
        list(chat.ask("a" * (240 - kept_free - said - begun + more)))
        assert chat.left_out == left_out


def test_a_message_that_cannot_fit_is_refused_and_not_remembered(talk: Talk) -> None:
    chat, parrot = talk("b" + END, length=100)
    with pytest.raises(SpecError, match="the model takes 100 with its answer; shorten it"):
        chat.ask("a" * 100)
    assert chat.exchanges == parrot.prompts == []
    list(chat.ask("a"))
    assert chat.exchanges == [Exchange("a", "b")]


def test_why_an_answer_ended(talk: Talk) -> None:
    chat, _ = talk("b" * 50, max_new_tokens=5)
    assert "".join(chat.ask("a")) == "bbbbb"
    assert chat.ended == "max_new_tokens"
    chat, parrot = talk("b" * 90, length=100, max_new_tokens=90)
    answer = "".join(chat.ask("a"))
    assert len(answer) == 100 - len(parrot.prompts[0])
    assert chat.ended == "length"


def test_without_a_template_each_message_stands_alone(talk: Talk, tokenizer: Any) -> None:
    chat, parrot = talk("eins<eos>", "zwei<eos>", template=None)
    for word in ("one", "two"):
        list(chat.ask(word))
    assert parrot.prompts == [tokenizer(word)["input_ids"] for word in ("one", "two")]
    rows = [{"prompt": "one", "response": "eins"}, {"prompt": "two", "response": "zwei"}]
    assert chat.rows() == rows
    with pytest.raises(SpecError, match="without a chat template"):
        chat.system = "Translate."


def test_each_answer_is_drawn_anew_and_a_seed_draws_them_all_again(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat(self: Parrot, tokens: Tensor, positions: Tensor) -> Tensor:
        return torch.zeros(1, 258)

    monkeypatch.setattr(Parrot, "step", flat)

    def drawn(seed: int) -> list[str]:
        sampling = Sampling(temperature=1.0, seed=seed)
        chat, _ = talk("", "", sampling=sampling, max_new_tokens=8)
        return ["".join(chat.ask("a")), "".join((chat.undo(), chat.ask("a"))[1])]

    assert drawn(1) == drawn(1)
    assert drawn(1)[0] != drawn(1)[1]
    assert drawn(1) != drawn(5)
