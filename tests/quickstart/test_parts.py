"""Corpus, tokenizer, chart, answers and YAML of the quickstart, each by itself."""

import json
import random
from pathlib import Path

import pytest

from foundry_sdk.errors import DataError, RunError
from foundry_sdk.plugin.catalog import Catalog, PluginFailure
from foundry_sdk.plugin.source import PluginSource
from foundry_sdk.quickstart.answers import is_function
from foundry_sdk.quickstart.by_hand import (
    BY_HAND,
    CHAT_TEMPLATE,
    COMMANDS_FILE,
    FINETUNE_FILE,
    PRETRAIN_FILE,
    QUESTION,
    write_files,
)
from foundry_sdk.quickstart.chart import text_chart
from foundry_sdk.quickstart.corpus import Corpus, write_corpus
from foundry_sdk.quickstart.pairs import INSTALL, PLUGIN, missing_plugin
from foundry_sdk.quickstart.run import small_data, step_count
from foundry_sdk.quickstart.sizes import FULL, QUICK, Sizes, finetune_yaml, pretrain_yaml
from foundry_sdk.quickstart.train_tokenizer import train_tokenizer


class Silent:
    """Hears and forgets."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def begin(self, title: str) -> None:
        self.titles.append(title)

    def progress(self, fraction: float, text: str) -> None:
        assert 0 <= fraction <= 1
        assert text

    def end(self, text: str) -> None:
        assert text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), max_bytes=600_000)


def test_corpus_is_the_library_as_it_is(corpus: Corpus) -> None:
    files = [*corpus.train.glob("*.txt"), *corpus.validation.glob("*.txt")]
    assert len(files) == corpus.files
    assert sum(file.stat().st_size for file in files) == corpus.bytes <= 600_000
    assert {file.name for file in corpus.train.iterdir()}.isdisjoint(
        file.name for file in corpus.validation.iterdir()
    )
    some = sorted(corpus.train.glob("*.txt"))[3]
    module = corpus.source.joinpath(*some.stem.split(".")).with_suffix(".py")
    assert some.read_bytes() == module.read_bytes()


def test_corpus_is_the_same_every_time(corpus: Corpus, tmp_path: Path) -> None:
    again = write_corpus(tmp_path, max_bytes=600_000)
    assert (again.files, again.bytes) == (corpus.files, corpus.bytes)


def test_corpus_without_sources_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lonely.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="6 bytes of Python source in 1 files"):
        write_corpus(tmp_path / "out", max_bytes=600_000, stdlib=tmp_path)


def test_tokenizer_gives_back_every_text(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert train_tokenizer(corpus.train, tmp_path, vocab_size=600) == 600
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    assert len(tokenizer) == 600
    text = "def f(x):\n\treturn x  # déjà vu, 漢字, \N{GRINNING FACE}\r\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id]


def test_chart_shows_the_means(tmp_path: Path) -> None:
    del tmp_path
    chart = text_chart([1, 2, 3, 4], [4.0, 4.0, 2.0, 2.0], width=2, height=2)
    top, bottom, *_ = chart.splitlines()
    assert top.endswith("│█ ")
    assert "4.00" in top
    assert bottom.split("│")[1][0] == "█"
    assert bottom.split("│")[1][1] not in " █"
    assert chart.splitlines()[-1].split() == ["1", "4"]


def test_chart_keeps_its_size() -> None:
    generator = random.Random(0)  # noqa: S311 - no secret
    values = [generator.random() for _ in range(500)]
    lines = text_chart(range(500), values, width=40, height=5).splitlines()
    assert len(lines) == 7
    assert {len(line) for line in lines[:6]} == {49}


def test_chart_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="one value per step"):
        text_chart([], [])


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_yaml_is_a_spec_without_notices(sizes: Sizes, tmp_path: Path) -> None:
    from foundry_sdk.pretrainer import Pretrainer

    file = tmp_path / "pretrain.yaml"
    file.write_text(pretrain_yaml(sizes))
    trainer = Pretrainer.from_yaml(file)
    assert trainer.notices == ()
    plan = trainer.plan()
    assert plan.total_tokens == sizes.steps * sizes.step_tokens


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_finetuning_yaml_is_a_spec_without_notices(sizes: Sizes, tmp_path: Path) -> None:
    from foundry_sdk.finetuner import Finetuner

    file = tmp_path / "finetune.yaml"
    file.write_text(finetune_yaml(sizes))
    trainer = Finetuner.from_yaml(file)
    assert trainer.notices == ()
    assert trainer.spec.max_duration.value == sizes.epochs


def test_shipped_examples_are_the_yaml_of_the_quickstart() -> None:
    examples = Path(__file__).parents[2] / "examples"
    for example in ("quickstart", "accelerate"):
        assert (examples / example / "pretrain.yaml").read_text() == pretrain_yaml(FULL)
    assert (examples / "quickstart" / "finetune.yaml").read_text() == finetune_yaml(FULL)


def test_small_data_fits_its_yaml(tmp_path: Path) -> None:
    told = Silent()
    folder = tmp_path / "out"
    data = small_data(folder, sizes=QUICK, tell=told, finetune=False)
    assert len(told.titles) == step_count(finetune=False, data_only=True)
    card = json.loads((folder / "data" / "train" / "card.json").read_text())
    assert card["samples"] == data.cards["train"].samples > QUICK.steps * QUICK.global_batch
    by_hand = folder / BY_HAND
    assert (by_hand / PRETRAIN_FILE).read_text() == pretrain_yaml(QUICK)
    assert data.pairs is None
    assert not (by_hand / FINETUNE_FILE).exists()
    assert FINETUNE_FILE not in (by_hand / COMMANDS_FILE).read_text()
    with pytest.raises(RunError, match="there already"):
        small_data(folder, sizes=QUICK, tell=told, finetune=False)


def plugin(distribution: str = PLUGIN, name: str = "code_instruct") -> PluginSource:
    return PluginSource(distribution=distribution, name=name, version="1", load=lambda: None)


def test_what_to_do_where_nothing_mines() -> None:
    nothing = Catalog(entries={})
    assert "not installed" in missing_plugin(nothing)
    folder = INSTALL.split()[-1]
    assert (Path(__file__).parents[2] / folder / "pyproject.toml").is_file()
    assert INSTALL in missing_plugin(nothing)
    left_out = Catalog(entries={}, left_out=(plugin(),), allowed=())
    assert "FOUNDRY_PLUGINS leaves out" in missing_plugin(left_out)
    other = Catalog(entries={}, left_out=(plugin("acme", "acme"),), allowed=())
    assert "not installed" in missing_plugin(other)
    failure = PluginFailure(source=plugin(), reason="ImportError: no", details="")
    assert "failed to load: ImportError: no" in missing_plugin(
        Catalog(entries={}, failures=(failure,))
    )


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("def f(x):\n    return x\n", True),
        ("@cache\nasync def f():\n    pass", True),
        ("def f(x):\n    return (x", False),
        ("def f(): pass\ndef g(): pass\n", False),
        ("x = 1\n", False),
        ("", False),
        ("def f():\n    return '\0'\n", False),
    ],
)
def test_what_counts_as_one_whole_function(text: str, whole: bool) -> None:
    assert is_function(text) is whole


def test_commands_by_hand_exist(tmp_path: Path) -> None:
    """Their flags are those of the command line; the slow test runs them."""
    import typer

    from foundry_sdk.cli.main import app

    write_files(tmp_path, QUICK, finetune=True)
    root = typer.main.get_command(app)
    found = 0
    for whole in (tmp_path / COMMANDS_FILE).read_text().splitlines():
        line = whole.rpartition(" | ")[2]
        if not line.startswith("foundry "):
            continue
        command = root
        words = line.split()[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
        found += 1
    assert found == 12


def test_chat_template_by_hand_is_the_form_of_the_pairs(tmp_path: Path) -> None:
    from foundry_sdk.data.tokenizer import load_tokenizer
    from foundry_sdk.testing import tiny_tokenizer

    write_files(tmp_path, QUICK, finetune=True)
    messages = [
        {"role": "user", "content": "Not this."},
        {"role": "assistant", "content": "Nor this."},
        {"role": "user", "content": "Return 'x'."},
    ]
    written = load_tokenizer(tiny_tokenizer(tmp_path / "bytes")).apply_chat_template(
        messages, chat_template=(tmp_path / CHAT_TEMPLATE).read_text(), tokenize=False
    )
    assert written == QUESTION.format("Return 'x'.")
