"""The JSON Schema against the reader: what one takes, the other takes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs.document import load
from foundry_sdk.specs.run import PretrainSpec, RunSpec
from foundry_sdk.specs.schema import field_docs, spec_schema
from foundry_sdk.specs.structure import unstructure
from foundry_sdk.specs.yaml_text import parse

Reader = Callable[..., tuple[PretrainSpec, tuple[str, ...]]]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def schema(catalog: Catalog) -> dict[str, Any]:
    return spec_schema(PretrainSpec, catalog)


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_file_with_references_is_valid_and_so_is_what_it_resolves_to(
    validator: jsonschema.Draft202012Validator, read_text: Reader, good: str
) -> None:
    validator.validate(parse(good).values)
    validator.validate(unstructure(read_text(good)[0]))
    short = "max_seq_len: ${variables.n}\nglobal_train_batch_size: ${n}\n"
    text = good.replace("max_seq_len: 32\n", "").replace("global_train_batch_size: 8\n", short)
    validator.validate(parse(text).values)


@pytest.mark.parametrize(
    "case",
    [
        ("model.loss_fn=torch_crossentropy", True),
        ("model.master_weights_dtype=bf16", True),
        ("model.init_device=meta", True),
        ("model.logit_scale=0.5", True),
        ("fsdp_config.limit_all_gathers=true", True),
        ("fsdp_config.sharding_strategy=FULL_SHARD", True),
        ("algorithms={gradient_clipping: {clipping_type: norm}}", True),
        ("eval_loader={name: shards, dataset: {local: x}}", True),
        ("eval_loader=[{label: a, name: shards, dataset: {local: x}}]", True),
        ("train_loader.preprocessor={name: acme/recipes}", True),
        ("loggers={notebook: {name: x}}", True),
        ("device_train_microbatch_size=4", True),
        ("max_duration=2", True),
        ("metadata={any: [1, {thing: null}]}", True),
        ("optimizer.lr=fast", False),
        ("optimizer.name=adamx", False),
        ("optimizer.beta=[1, 2]", False),
        ("optimizer.betas=[0.9]", False),
        ("model.d_model=0", False),
        ("model.d_model='8'", False),
        ("model.attn.attn_impl=triton", False),
        ("model.attn.alibi='false'", False),
        ("callbacks.wach={}", False),
        ("callbacks.watch.widow=3", False),
        ("eval_loader={name: shards}", False),
        ("eval_loader=[{label: 3, name: shards, dataset: {local: x}}]", False),
        ("precision=fp8", False),
        ("max_seq_len=-1", False),
        ("device_train_microbatch_size=all", False),
        ("sede=1", False),
        ("fsdp_config.sharding=FULL_SHARD", False),
        ("tokenizer.name=5", False),
    ],
)
def test_the_schema_and_the_reader_agree(
    validator: jsonschema.Draft202012Validator,
    read_text: Reader,
    good: str,
    tmp_path: Path,
    case: tuple[str, bool],
) -> None:
    override, valid = case
    path = tmp_path / "file.yaml"
    path.write_text(good, encoding="utf-8")
    assert validator.is_valid(load(path, [override]).values) is valid
    try:
        read_text(good, override)
    except SpecError:
        assert not valid
    else:
        assert valid


@pytest.mark.parametrize(
    "key", ["model", "tokenizer", "optimizer", "train_loader", "max_seq_len", "max_duration"]
)
def test_required_keys_are_required(
    validator: jsonschema.Draft202012Validator, good: str, key: str
) -> None:
    values = parse(good).values
    del values[key]
    assert not validator.is_valid(values)


def test_descriptions_come_from_docstrings(schema: dict[str, Any], tiny: ModuleType) -> None:
    model = schema["$defs"]["model:tiny"]
    assert model["description"] == "A model of few fields."
    assert model["properties"]["n_heads"]["description"] == (
        "heads of attention, of which d_model is a multiple."
    )
    assert field_docs(tiny.Momentum)["lr"] == "peak learning rate, before the schedule."


def test_every_field_of_a_run_is_described() -> None:
    assert {field for field in RunSpec.__annotations__ if field not in field_docs(RunSpec)} == set()


def test_two_kinds_of_a_family_have_their_own_fields(tiny: ModuleType) -> None:
    catalog = tiny.catalog_of_components(*tiny.COMPONENTS)
    names = set(spec_schema(PretrainSpec, catalog)["$defs"])
    assert {"model:tiny", "callback:watch", "callback:bell", "preprocessor:acme/recipes"} <= names


FILES = sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("tests/specs/data/*.yaml")])
SPEC_FILES = [path for path in FILES if "train_loader:" in path.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def real_validator() -> jsonschema.Draft202012Validator:
    catalog = PluginHost.load([], strict=True).catalog()
    return jsonschema.Draft202012Validator(spec_schema(PretrainSpec, catalog))


@pytest.mark.parametrize("path", SPEC_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_spec_file_of_the_project_is_valid(
    real_validator: jsonschema.Draft202012Validator, path: Path
) -> None:
    values = parse(path.read_text(encoding="utf-8")).values
    real_validator.validate(values)
    assert not real_validator.is_valid({**values, "max_seq_length": 1})
    assert not real_validator.is_valid({**values, "optimizer": {"name": "adamax"}})
