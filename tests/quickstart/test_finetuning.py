"""The last steps of the quickstart, small; they need the plugin that mines pairs."""

import json
from typing import Any

import pytest

from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.quickstart.by_hand import QUESTION
from foundry_sdk.quickstart.pairs import missing_plugin
from foundry_sdk.quickstart.run import Quickstart, quickstart, step_count
from foundry_sdk.quickstart.sizes import Sizes

MISSING = missing_plugin(PluginHost.from_environment().catalog())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
SMALL = Sizes(
    text_bytes=600_000, steps=8, console_steps=8, epochs=1, vocab_size=1024, pair_characters=250
)


class Titles(list[str]):
    """Keeps the titles."""

    def begin(self, title: str) -> None:
        self.append(title)

    def progress(self, fraction: float, text: str) -> None:
        pass

    def end(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    told = Titles()
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    result = quickstart(folder, sizes=SMALL, tell=told, finetune=True)
    assert len(told) == step_count(finetune=True)
    return result


def pairs(made: Quickstart, split: str) -> list[dict[str, str]]:
    lines = (made.data.folder / "pairs" / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_answers_are_to_prompts_of_modules_held_out(made: Quickstart) -> None:
    assert made.finetuned is not None
    held_out, learned = pairs(made, "val"), pairs(made, "train")
    assert made.data.pairs == {"train": len(learned), "val": len(held_out)}
    texts = made.data.corpus
    before, after = QUESTION.split("{}")
    for rows, folder in ((held_out, texts.validation), (learned, texts.train)):
        for row in rows:
            file, name = row["origin"].split(":")
            assert f"def {name.rsplit('.', 1)[-1]}(" in (folder / file).read_text("utf-8")
        assert all(row["prompt"].startswith(before) for row in rows)
        assert all(row["prompt"].endswith(after) for row in rows)
    originals = {(row["prompt"], row["response"]) for row in held_out}
    asked = {(answer.prompt, answer.original) for answer in made.finetuned.answers}
    assert asked
    assert asked <= originals


def test_loss_before_is_that_of_transformers(made: Quickstart) -> None:
    """The mean over all tokens of responses, each with its end, of the exported model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert made.finetuned is not None
    tokenizer = AutoTokenizer.from_pretrained(str(made.model))
    model: Any = AutoModelForCausalLM.from_pretrained(str(made.model))
    total, count = 0.0, 0
    for row in pairs(made, "val"):
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        ids = [*prompt, *response][: SMALL.pair_tokens]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        total += float(losses[len(prompt) - 1 :].sum())
        count += len(ids) - len(prompt)
    assert made.finetuned.loss_before == pytest.approx(total / count, rel=1e-4)
    assert made.finetuned.loss_after < made.finetuned.loss_before


def test_both_runs_have_a_picture(made: Quickstart) -> None:
    assert made.finetuned is not None
    for run in (made.run, made.finetuned.run):
        assert (run.run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_it(made: Quickstart, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from foundry_sdk.cli.quickstart import show

    show(Console(soft_wrap=True, highlight=False), made, SMALL)
    printed = capsys.readouterr().out
    assert made.finetuned is not None
    assert f"{made.finetuned.loss_after:.3f} after" in printed
    for answer in made.finetuned.answers[:3]:
        assert repr(answer.prompt) in printed
        assert answer.after.strip().split("\n")[0] in printed
    assert "foundry train finetune.yaml" in printed
