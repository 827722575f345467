"""What is no example is refused with its place and content; the preprocessors' templates."""

import json
import sys
from pathlib import Path

import pytest

from foundry_sdk.builtin import foundry_components
from foundry_sdk.data import preprocessors
from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.data.finetuning.examples import checked
from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec
from foundry_sdk.errors import DataError, SpecError

USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        (["a"], "expected a mapping with prompt and response, or with messages, got list"),
        ({"prompt": "a"}, "has the keys 'prompt'; expected exactly prompt and response"),
        ({"prompt": "a", "response": "b", "id": 1}, "has the keys 'id', 'prompt', 'response'"),
        ({"prompt": 1, "response": "b"}, "prompt must be a text, got int"),
        ({"prompt": "a", "completion": None}, "completion must be a text, got NoneType"),
        ({"messages": "a"}, "messages must be a list, got str"),
        ({"messages": [ANSWER]}, "messages must be at least two, got 1"),
        ({"messages": [ANSWER, USER]}, "the last message must be assistant's, not user's"),
        ({"messages": [USER, USER, ANSWER]}, r"messages\[1\] has the same role as the one before"),
        ({"messages": [{"role": "user"}, ANSWER]}, r"messages\[0\] must have exactly role and"),
        ({"messages": [{**USER, "x": 1}, ANSWER]}, r"got \['content', 'role', 'x'\]"),
        ({"messages": [{**USER, "role": "gpt"}, ANSWER]}, r"messages\[0\] has the role 'gpt'"),
        ({"messages": [{**USER, "content": 3}, ANSWER]}, r"messages\[0\] has a content of int"),
        ({"messages": [USER, "b"]}, r"messages\[1\] must be a mapping, got str"),
    ],
)
def test_what_is_no_example_is_refused(example, problem):
    with pytest.raises(DataError, match=problem) as caught:
        checked(example, "row 7")
    assert str(caught.value).startswith("row 7: ")


def test_a_failing_row_is_named_with_its_number_and_content(source):
    rows = [{"prompt": "a", "response": "b"}] * 3 + [{"prompt": "strange", "response": None}]
    with pytest.raises(DataError, match=r"json:train row 3: response must be a text.*strange"):
        source(rows)


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Put a module of preprocessors into the working directory, and return its name."""
    name = "kitchen_functions"
    (tmp_path / f"{name}.py").write_text(
        "def good(row): return {'prompt': row['q'], 'response': row['a']}\n"
        "def wrong(row): return {'prompt': row['q']}\n"
        "def fails(row): return {'prompt': row['nothing']}\n"
    )
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_preprocessing_by_import_path_by_columns_and_without(source, functions):
    rows = [{"q": f"cat {n}", "a": "dog"} for n in range(4)]
    plain = [{"prompt": row["q"], "response": row["a"]} for row in rows]
    expected = next(iter(source(plain))).input_ids.tolist()
    mapping = {"prompt": "q", "response": "a"}
    for chosen in (f"{functions}:good", mapping):
        assert next(iter(source(rows, preprocessing_fn=chosen))).input_ids.tolist() == expected
    path = [*sys.path]
    with pytest.raises(DataError, match=r"row 0: has the keys 'prompt'; .* example: \{'prompt'"):
        source(rows, preprocessing_fn=f"{functions}:wrong")
    many = [{"q": f"cat {n}", "a": "dog"} for n in range(1003)]
    many[1001] = {"q": "lion", "a": 7}
    with pytest.raises(DataError, match=r"row 1001: response must be a text, got int; .*'lion'"):
        source(many, preprocessing_fn=f"{functions}:good")
    with pytest.raises(DataError, match=r"the preprocessor failed \(KeyError: 'nothing'\)"):
        source(rows, preprocessing_fn=f"{functions}:fails")
    with pytest.raises(DataError, match="has no function 'goood'; did you mean 'good'"):
        source(rows, preprocessing_fn=f"{functions}:goood")
    with pytest.raises(DataError, match="'no_such_module' cannot be imported"):
        source(rows, preprocessing_fn="no_such_module:f")
    with pytest.raises(DataError, match="no column 'z'; the row has q, a"):
        source(rows, preprocessing_fn={"prompt": "z", "response": "a"})
    assert sys.path == path


def test_a_changed_preprocessor_is_run_again(source, functions, tmp_path):
    rows = [{"q": "cat", "a": "dog"}]
    before = next(iter(source(rows, preprocessing_fn=f"{functions}:good", batch=1)))
    sys.modules.pop(functions)
    file = tmp_path / f"{functions}.py"
    file.write_text(file.read_text().replace("row['q']", "row['q'] + ' sat'"))
    import importlib

    importlib.invalidate_caches()
    after = next(iter(source(rows, preprocessing_fn=f"{functions}:good", batch=1)))
    assert before.input_ids.tolist() != after.input_ids.tolist()


DOLLY = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


@pytest.mark.parametrize(
    ("component", "row", "expected"),
    [
        (
            preprocessors.alpaca,
            {"text": "Do it.\n### Response:\nDone."},
            {"prompt": "Do it.\n### Response:", "response": "\nDone."},
        ),
        (
            preprocessors.dolly,
            {"instruction": "Sum", "input": "1 2", "output": "3"},
            {"prompt": DOLLY.format("Sum\n1 2"), "response": "3"},
        ),
        (
            preprocessors.dolly,
            {"instruction": "Hi {x}", "input": "", "output": "3"},
            {"prompt": DOLLY.format("Hi {x}"), "response": "3"},
        ),
        (preprocessors.p3, {"inputs": "a", "targets": "b"}, {"prompt": "a:", "response": "b"}),
        (preprocessors.flan, {"inputs": "a", "targets": "b"}, {"prompt": "a", "response": " b"}),
        (
            preprocessors.muennighoff_p3,
            {"inputs": "a\n", "targets": "b"},
            {"prompt": "a\n", "response": "b"},
        ),
        (
            preprocessors.open_hermes,
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"messages": [USER, ANSWER]},
        ),
        (preprocessors.stack_math_qa, {"Q": "a", "A": "b"}, {"messages": [USER, ANSWER]}),
        (
            preprocessors.numina_math,
            {"messages": [USER, ANSWER], "source": "x"},
            {"messages": [USER, ANSWER]},
        ),
        (
            preprocessors.multiple_choice,
            {"query": "Q?\n", "choices": ["x", "y"], "gold": 1},
            {"prompt": "Q?\n\nOptions:\n - x\n - y\nAnswer: ", "response": "y"},
        ),
    ],
)
def test_templates(component, row, expected):
    assert component().build()(row) == expected
    assert component in foundry_components()


def test_alpaca_refuses_two_responses(source):
    rows = [{"text": "a ### Response: b ### Response: c"}]
    with pytest.raises(DataError, match="exactly once in text, found it 2 times"):
        source(rows, preprocessor=preprocessors.alpaca())


def test_arc_easy_with_its_preprocessor(source, neox):
    import os

    path = Path(os.environ["FOUNDRY_TEST_DATA"]) / "arc_easy_train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    built = source(
        hf_name="json", hf_kwargs={"data_files": str(path)}, split="train",
        preprocessor=preprocessors.multiple_choice(), tokenizer=neox, length=256,
    )  # fmt: skip
    found = built.describe()["sources"]["json:train"]
    assert found["kept"] == len(rows) == 100
    for row, batch in zip(rows, source_rows(built), strict=True):
        ids, labels = batch
        text = neox.decode(ids)
        assert text.endswith(f"\nAnswer: {row['choices'][row['gold']]}<|endoftext|>")
        assert neox.decode(labels) == f"{row['choices'][row['gold']]}<|endoftext|>"


def source_rows(built):
    for batch in built:
        for ids, labels, mask in zip(
            batch.input_ids, batch.labels, batch.attention_mask, strict=True
        ):
            yield ids[mask], labels[labels != -100]


def spec(**changes):
    return FinetuningDatasetSpec(**{"hf_name": "json", "split": "train", **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hf_name": None, "split": None}, "needs hf_name, streams, or one of remote and local"),
        ({"local": "x"}, "either hf_name, or MDS shards"),
        ({"split": None}, "split is required with hf_name"),
        ({"hf_name": None, "local": "x", "hf_kwargs": {"a": 1}}, "hf_kwargs: for hf_name only"),
        ({"hf_name": None, "local": "x", "safe_load": True}, "safe_load: for hf_name only"),
        ({"hf_name": None, "local": "x", "streams": {"a": None}}, "either streams: or one of"),
        ({"target_prompts": "length>=0"}, "none, all or length>=N, got 'length>=0'"),
        ({"target_responses": "none"}, "last or all, got 'none'"),
        ({"packing_ratio": 0.5}, "a number >= 1, or 'auto', got 0.5"),
        ({"packing_ratio": "often"}, "a number >= 1, or 'auto', got 'often'"),
        ({"max_leftover_bins_to_keep": 2}, "give packing_ratio too"),
        ({"pad_to_longest": True, "allow_pad_trimming": True}, "either pad_to_longest or"),
        ({"decoder_only_format": False, "packing_ratio": 2.0}, "packing_ratio is for decoders"),
        ({"decoder_only_format": False, "target_prompts": "all"}, "learns the last response only"),
        ({"preprocessing_fn": {"prompt": "a"}}, "needs exactly prompt and response"),
        ({"preprocessing_fn": "acme"}, "no preprocessor of that name"),
        ({"hf_kwargs": {"trust_remote_code": True}}, "code of a dataset is not run here"),
        ({"seq_parallel_replication": 2}, "sequence parallelism is not supported"),
    ],
)
def test_wrong_options_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        spec(**changes)
    assert spec(target_prompts="Length>=3").target_prompts == "Length>=3"


def test_what_does_not_fit_the_run_is_refused(source, prompts):
    rows = prompts(4)
    with pytest.raises(DataError, match="decoder_only_format is false, but the model is a decoder"):
        source(rows, decoder_only_format=False)
    with pytest.raises(DataError, match="is true, but the model is an encoder-decoder"):
        source(rows, decoder_only_format=True, encoder_decoder=True)
    with pytest.raises(DataError, match="an encoder-decoder learns the last response only"):
        source(rows, target_responses="all", encoder_decoder=True)
    with pytest.raises(DataError, match="max_seq_len is 32, but the run's max_seq_len is 64"):
        source(rows, max_seq_len=32)
    with pytest.raises(DataError, match="eos_token_id is 7, but the tokenizer's is"):
        source(rows, eos_token_id=7)
    source(rows, eos_token_id=7, override_eos_token_id_mismatch_error=True)


def test_a_missing_file_or_split_names_the_dataset(source, tmp_path, prompts, jsonl):
    files = {"data_files": str(tmp_path / "nothing.jsonl")}
    with pytest.raises(DataError, match=r"dataset hf_name 'json', split 'train': .*nothing.jsonl"):
        source(hf_name="json", split="train", hf_kwargs=files)
    files = {"data_files": str(jsonl(prompts(3)))}
    with pytest.raises(DataError, match=r"split 'test': .*[Uu]nknown split"):
        source(hf_name="json", split="test", hf_kwargs=files)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    source(hf_name=str(tmp_path / "folder"), split="train", safe_load=True)
    (tmp_path / "folder" / "load.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match=r"safe_load: .*load.py is none of .csv, .json"):
        source(hf_name=str(tmp_path / "folder"), split="train", safe_load=True)


HEAD = """
max_seq_len: 64
model: {name: mpt_causal_lm, d_model: 16, n_heads: 2, n_layers: 1, max_seq_len: 64, vocab_size: 512}
tokenizer: {name: some/tokenizer}
optimizer: {name: decoupled_adamw, lr: 1e-3}
scheduler: {name: linear_decay_with_warmup, t_warmup: 0ba}
max_duration: 1ba
global_train_batch_size: 8
"""


def read(tmp_path, dataset):
    from foundry_sdk import Finetuner

    path = tmp_path / "run.yaml"
    loader = f"train_loader:\n  name: finetuning\n  dataset: {dataset}\n"
    path.write_text(HEAD + loader, encoding="utf-8")
    return Finetuner.from_yaml(path).spec


def test_a_file_names_preprocessors_by_kind_or_by_the_dataset(tmp_path):
    from foundry_sdk.plugin.host import PluginHost
    from foundry_sdk.specs.document import from_values
    from foundry_sdk.specs.run import FinetuneSpec
    from foundry_sdk.specs.structure import run_spec, unstructure

    chosen = read(tmp_path, "{hf_name: json, split: train, preprocessing_fn: multiple_choice}")
    assert chosen.train_loader.dataset.preprocessor == preprocessors.multiple_choice()
    assert chosen.train_loader.dataset.max_seq_len == 64
    implied = read(tmp_path, "{hf_name: tatsu-lab/alpaca, split: train}")
    assert implied.train_loader.dataset.preprocessor == preprocessors.alpaca()
    none = read(tmp_path, "{hf_name: acme/unknown, split: train}")
    assert none.train_loader.dataset.preprocessor is None
    path = read(tmp_path, "{hf_name: tatsu-lab/alpaca, split: train, preprocessing_fn: 'a.b:c'}")
    assert path.train_loader.dataset.preprocessor is None
    inner = "{hf_name: json, split: train, preprocessing_fn: multiple_choice, weight: 2}"
    mixed = read(tmp_path, f"{{datasets: {{a: {inner}, b: {{local: x, weight: 1}}}}}}")
    parts = mixed.train_loader.dataset.datasets
    assert parts["a"].preprocessor == preprocessors.multiple_choice()
    assert (parts["a"].weight, parts["b"].preprocessor) == (2, None)
    catalog = PluginHost.load([]).catalog()
    for spec in (chosen, implied, none, path, mixed):
        assert run_spec(from_values(unstructure(spec)), FinetuneSpec, catalog)[0] == spec
    with pytest.raises(SpecError, match=r"preprocessing_fn: no preprocessor is named 'multiple_ch"):
        read(tmp_path, "{hf_name: json, split: train, preprocessing_fn: multiple_choices}")
    with pytest.raises(SpecError, match=r"shufle: unknown key; did you mean 'shuffle'"):
        read(tmp_path, "{hf_name: json, split: train, shufle: true}")


def test_every_built_in_preprocessor_is_listed():
    kinds = {c.kind for c in foundry_components() if issubclass(c, PreprocessorSpec)}
    assert kinds == {
        *("tatsu-lab/alpaca", "HuggingFaceH4/databricks_dolly_15k", "bigscience/P3"),
        *("Muennighoff/P3", "Muennighoff/flan", "teknium/OpenHermes-2.5"),
        *("math-ai/StackMathQA", "AI-MO/NuminaMath-CoT", "multiple_choice"),
    }
