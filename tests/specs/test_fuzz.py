"""Whatever a file holds, the answer is a spec or one of our errors."""

import copy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_sdk.errors import PluginError, SpecError
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs.document import from_values, load
from foundry_sdk.specs.run import PretrainSpec
from foundry_sdk.specs.structure import read, run_spec, to_yaml
from foundry_sdk.specs.yaml_text import parse

SETTINGS = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LLM_FOUNDRY = Path(__file__).parent / "data" / "llm-foundry-mpt-125m.yaml"
BUILTINS = PluginHost.load([]).catalog()
FULL = """\
variables: {n: 4}
max_seq_len: 32
model: {name: tiny, d_model: 16, attn: {attn_impl: flash, alibi: false}, logit_scale: 0.5}
tokenizer: {name: some/tokenizer, kwargs: {model_max_length: 32}}
optimizer: {name: momentum, lr: 1e-4, betas: [0.9, 0.95], disable_grad: [a]}
scheduler: {name: cosine, t_warmup: 2ba, t_max: 1dur}
train_loader: {name: shards, dataset: {local: x, streams: {a: {p: 1}}}, num_workers: 2}
eval_loader: [{label: a, name: shards, dataset: {local: x}}]
max_duration: 10ba
global_train_batch_size: 8
device_train_microbatch_size: auto
fsdp_config: {sharding_strategy: FULL_SHARD, limit_all_gathers: true}
compile_config: {mode: default}
algorithms: {gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}}
callbacks: {watch: {window: 5, keys: [a]}, bell: }
loggers: {notebook: {name: x}}
loss: {name: torch_crossentropy}
metadata: {a: [1]}
seed: 3
"""
WORDS = st.sampled_from(
    [
        *("", "tiny", "watch", "auto", "1e-4", "10ba", "-1ba", "0.5dur", "1e400ba", "9" * 400),
        *("name", "null", "${seed}", "${variables.n}", "${a", "fused_crossentropy", "async_eval"),
        *("a.b", "\0"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items:
        found += places(item, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, text: str) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(parse(text).values)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(values)))
        target: Any = values
        for step in path[:-1]:
            target = target[step]
        action = draw(st.sampled_from(["replace", "delete", "add", "rename"]))
        if action == "replace" or isinstance(target, list):
            target[path[-1]] = draw(VALUES)
        elif action == "add":
            target[draw(WORDS | st.text(max_size=6))] = draw(VALUES)
        elif action == "rename":
            target[draw(st.text(max_size=6))] = target.pop(path[-1])
        else:
            del target[path[-1]]
        if not values:
            break
    return values


def check_message(error: Exception) -> None:
    assert str(error)
    assert all(line and len(line) < 2000 for line in str(error).split("\n"))


@SETTINGS
@given(values=mutated(FULL))
def test_a_mutated_config_is_a_spec_or_a_spec_error(
    catalog: Catalog, values: dict[str, Any]
) -> None:
    try:
        spec, notices = run_spec(from_values(values), PretrainSpec, catalog)
    except (SpecError, PluginError) as error:
        check_message(error)
        return
    assert all(isinstance(notice, str) for notice in notices)
    to_yaml(spec)


@SETTINGS
@given(values=mutated(LLM_FOUNDRY.read_text(encoding="utf-8")))
def test_a_mutated_file_of_llm_foundry_is_a_spec_or_a_spec_error(values: dict[str, Any]) -> None:
    try:
        run_spec(from_values(values), PretrainSpec, BUILTINS)
    except (SpecError, PluginError) as error:
        check_message(error)


@SETTINGS
@given(data=st.data())
def test_a_mutated_text_is_a_spec_or_a_spec_error(
    catalog: Catalog, tmp_path: Path, data: st.DataObject
) -> None:
    text = FULL
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 8)))
        extra = data.draw(st.text("{}[]:,-&*!|>'\"%@`#\n\t ax1.\u00e9\u2028<?$\\", max_size=5))
        text = text[:at] + extra + text[end:]
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode())
    try:
        read(path, PretrainSpec, catalog=catalog)
    except (SpecError, PluginError) as error:
        check_message(error)


@SETTINGS
@given(
    key=st.text("abcdelmort._[]0123-", max_size=12)
    | st.sampled_from(
        ["model.attn", "optimizer.betas.1", "eval_loader[0].label", "callbacks.watch"]
    ),
    value=st.text(max_size=12) | WORDS,
)
def test_any_override_is_applied_or_refused(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "run.yaml"
    if not path.exists():
        path.write_text(FULL, encoding="utf-8")
    try:
        load(path, [f"{key}={value}"])
    except SpecError as error:
        check_message(error)


@SETTINGS
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_spec_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    try:
        load(path)
    except SpecError as error:
        check_message(error)
