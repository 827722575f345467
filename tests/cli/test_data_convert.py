"""``foundry data convert``: the reference's flags, either spelling, and what is printed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from foundry_sdk.cli import data
from foundry_sdk.cli.conversion_progress import duration_text, progress_text, showing_progress
from foundry_sdk.cli.data import spread_values
from foundry_sdk.data import ConversionProgress, DataCard
from foundry_sdk.errors import DataError


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n} "}) + "\n" for n in range(50)))
    return path


def run(*words: object) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    data.register(app)
    result = CliRunner().invoke(app, ["data", "convert", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=alphabet[0]).save_pretrained(
        tmp_path / "tokenizer"
    )
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("separator", ["_", "-"])
def test_either_spelling_of_every_flag(
    separator: str, lines: Path, tmp_path: Path, tokenizer: str
) -> None:
    flags = {
        "path": lines,
        "out-root": tmp_path / "out",
        "split": "val",
        "concat-tokens": 32,
        "tokenizer": tokenizer,
        "tokenizer-kwargs": '{"model_max_length": 99}',
        "bos-text": "<",
        "eos-text": ">",
        "compression": "zstd:3",
        "text-column": "text",
        "max-samples": 10,
        "num-workers": 1,
        "errors": "skip",
    }
    words = [f"--{name.replace('-', separator)}={value}" for name, value in flags.items()]
    switches = [f"--no{separator}wrap", "--resume"]
    printed = run("json", *words, *switches)

    card = DataCard.read(tmp_path / "out" / "val")
    assert card is not None
    assert (card.samples, card.sequence_length, card.wrap) == (10, 32, False)
    assert (card.bos_text, card.eos_text, card.compression) == ("<", ">", "zstd:3")
    assert card.options == {
        "text_column": "text",
        "errors": "skip",
        "max_samples": 10,
        "size_limit": 1 << 26,
        "tokenizer_kwargs": {"model_max_length": 99},
    }
    assert re.search(r"out/val: 30 documents, 10 rows, 320 tokens of .* in 1 shards", printed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--output_folder", "--out-root"),
        ("--processes", "--num-workers"),
        ("--reprocess", "--overwrite"),
    ],
)
def test_names_of_the_reference_for_text(
    old: str, new: str, tmp_path: Path, tokenizer: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("some text " * 100)
    cards = []
    for flag in (old, new):
        words: dict[str, object] = {
            "--input_folder": tmp_path / "in",
            "--out-root": tmp_path / flag,
            "--num-workers": 1,
            "--concat_tokens": 16,
            "--tokenizer": tokenizer,
        }
        if new in words:
            words[flag] = words.pop(new)
        switches = [flag] if new == "--overwrite" else []
        run("text", *[x for pair in words.items() for x in pair], "--use_tokenizer_eos", *switches)
        cards.append(DataCard.read(tmp_path / flag))
    assert cards[0] == cards[1]
    assert cards[0] is not None
    assert (cards[0].compression, cards[0].eos_text) == ("zstd", "<|endoftext|>")


def test_compression_of_text_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    run("text", "--input-folder", tmp_path / "in", "--out-root", tmp_path / "out",
        "--compression", "none")  # fmt: skip
    assert (tmp_path / "out" / "shard.00000.mds").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["--splits", "train", "val", "--out_root", "x"],
        ["--splits", "train,val", "--out_root", "x"],
        ["--splits=train, val", "--out_root", "x"],
        ["--out_root", "x", "--splits", "train", "--splits", "val"],
    ],
)
def test_several_splits_may_follow_one_flag(words: list[str]) -> None:
    spread = spread_values(words, "--splits")
    assert [spread[n + 1] for n, word in enumerate(spread) if word == "--splits"] == [
        "train",
        "val",
    ]
    assert "".join(spread).count("--out_rootx") == 1


def test_flags_of_hf_reach_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(**options: Any) -> dict[str, DataCard]:
        seen.update(options)
        return {"val": DataCard(kind="text", split="val", samples=1, documents=1)}

    monkeypatch.setattr("foundry_sdk.data.convert.functions.convert_hf", record)
    printed = run(
        "hf", "--dataset", "c4", "--data_subset", "en", "--splits", "train_small", "val_small",
        "--out_root", tmp_path, "--concat_tokens", 2048, "--tokenizer", "t", "--eos_text", "<e>",
        "--num_workers", 3,
    )  # fmt: skip
    assert seen["dataset"] == "c4"
    assert seen["data_subset"] == "en"
    assert seen["splits"] == ["train_small", "val_small"]
    assert (seen["concat_tokens"], seen["tokenizer"], seen["eos_text"]) == (2048, "t", "<e>")
    assert (seen["num_workers"], seen["compression"], seen["resume"]) == (3, None, False)
    assert f"{tmp_path}/val: 1 documents, 1 rows, in 0 shards" in printed


@pytest.mark.parametrize(
    ("name", "words", "text_column"),
    [
        ("hf", ["--dataset", "x", "--out-root", "y"], True),
        ("json", ["--path", "x", "--out-root", "y"], True),
        ("text", ["--input-folder", "x", "--output-folder", "y"], False),
    ],
)
def test_the_defaults_are_those_of_the_functions(
    name: str, words: list[str], *, text_column: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is given, and of the recipe that it makes: as if nothing had been given."""
    import inspect

    from foundry_sdk.data.convert import functions
    from foundry_sdk.data.convert.options import ConversionOptions, job_of, recipe_of

    function = getattr(functions, f"convert_{name}")
    seen: dict[str, Any] = {}

    def record(**given: Any) -> Any:
        seen.update(given)
        card = DataCard(kind="text", split="val", samples=1, documents=1)
        return {"val": card} if name == "hf" else card

    monkeypatch.setattr(functions, f"convert_{name}", record)
    run(name, *words)
    shared = set(ConversionOptions.__annotations__)
    assert shared - set(seen) == {"size_limit"}
    given: Any = {key: seen[key] for key in shared & set(seen) - {"report"}}
    unsaid: Any = {"compression": "zstd"} if name == "text" else {}
    assert recipe_of(given) == recipe_of(unsaid)
    assert job_of(given) == job_of({})
    own = inspect.signature(function).parameters
    assert ("text_column" in own) == text_column
    for key in set(seen) - shared:
        assert own[key].default in (seen[key], inspect.Parameter.empty), key


def test_an_option_that_there_is_none_of_is_named() -> None:
    from foundry_sdk.data import convert_json

    wrong: Any = {"no_wrapp": True}
    with pytest.raises(TypeError, match="'no_wrapp'; did you mean 'no_wrap'"):
        convert_json(path="x", out_root="y", **wrong)


def test_bad_tokenizer_arguments_are_named(lines: Path, tmp_path: Path) -> None:
    for text, message in {"{": "not JSON", "[1]": "expected a JSON object"}.items():
        with pytest.raises(DataError, match=f"--tokenizer-kwargs: {message}"):
            run("json", "--path", lines, "--out-root", tmp_path, "--tokenizer-kwargs", text)


def test_progress_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = ConversionProgress(
        split="train",
        fraction=0.256,
        samples=1500,
        documents=90,
        tokens=3_072_000,
        tokens_per_second=1_234_567.8,
        seconds_left=3723.4,
    )
    text = "25.6%, 3,072,000 tokens, 1,500 rows, 1,234,568 tokens/s, 1:02:03 left"
    assert progress_text(progress) == text
    assert duration_text(61) == "1:01"
    monkeypatch.setattr("foundry_sdk.cli.conversion_progress._SECONDS_BETWEEN_LINES", 0.0)
    with showing_progress() as report:
        report(progress)
    assert capsys.readouterr().err == f"train: {text}\n"


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with showing_progress() as report:
        for split in ("train", "val"):
            report(
                ConversionProgress(
                    split=split,
                    fraction=None,
                    samples=5,
                    documents=5,
                    tokens=None,
                    tokens_per_second=7.0,
                    seconds_left=None,
                )
            )
    shown = capsys.readouterr().err
    assert "val" in shown
    assert "5 documents, 7 documents/s" in shown
