"""A spec with one value changed is refused in our words, or is the spec with that value.

Every component is mutated: pretraining and finetuning, each kind of each family, all fields of it.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_sdk.errors import SpecError
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs.document import from_values
from foundry_sdk.specs.run import FinetuneSpec, PretrainSpec, RunSpec
from foundry_sdk.specs.structure import run_spec, unstructure
from foundry_sdk.units import Duration

BUILTINS: Catalog = PluginHost.load([]).catalog()
Path = tuple[str | int, ...]

TEXT = {"name": "text", "dataset": {"local": "x"}}
EXAMPLES = {"name": "finetuning", "dataset": {"hf_name": "json", "split": "train"}}
BASE: dict[str, Any] = {
    "max_seq_len": 32,
    "model": {"name": "mpt_causal_lm", "d_model": 16, "n_heads": 2, "n_layers": 2},
    "tokenizer": {"name": "some/tokenizer", "kwargs": {"model_max_length": 32}},
    "optimizer": {"name": "decoupled_adamw", "lr": 0.001},
    "scheduler": {"name": "constant_with_warmup", "t_warmup": "2ba"},
    "train_loader": TEXT,
    "max_duration": "10ba",
    "global_train_batch_size": 8,
}
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("callback", "early_stopper"): {"monitor": "loss/train/total", "dataloader_label": "train"},
    ("callback", "generate_callback"): {"prompts": ["a"], "interval": "5ba"},
    ("callback", "scheduled_gc"): {"batch_interval": 100},
    ("callback", "run_timeout"): {"timeout": 60},
    ("model", "hf_causal_lm"): {"pretrained_model_name_or_path": "acme/model"},
    ("model", "hf_t5"): {"pretrained_model_name_or_path": "acme/model"},
    ("scheduler", "inv_sqrt_with_warmup"): {"t_scale": "4ba", "t_cooldown": "1ba"},
    ("scheduler", "wsd"): {"t_decay": "2ba"},
}
FILLED: dict[str | int, Any] = {"max_seq_len": 32, "t_max": "1dur"}
"""What null stands for, as the fields' descriptions say."""
PLACES = {"model": "model", "optimizer": "optimizer", "scheduler": "scheduler", "loss": "loss"}
MORE: dict[str, dict[str, Any]] = {
    "a mixture": {
        "train_loader": {
            "name": "text",
            "dataset": {
                "streams": {
                    "a": {"local": "x", "proportion": 0.5},
                    "b": {"remote": "s3://b/c", "local": "y", "proportion": 2.0},
                },
                "shuffle": True,
            },
        }
    },
    "a mixture of examples": {
        "train_loader": {
            "name": "finetuning",
            "dataset": {
                "datasets": {
                    "a": {"hf_name": "json", "split": "train", "weight": 1.5},
                    "b": {"local": "x", "weight": 2.0},
                },
                "shuffle": True,
            },
        }
    },
    "evaluations": {
        "eval_loader": [{"label": "a", **TEXT}, {"label": "b", **EXAMPLES}],
        "eval_interval": "5ba",
    },
    "sharding, compiling, clipping": {
        "fsdp_config": {"sharding_strategy": "FULL_SHARD"},
        "compile_config": {"mode": "default"},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
    },
    "float8": {"precision": "amp_fp8", "fp8_config": {"recipe": "rowwise"}},
}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a valid document for each built-in kind, and for each section of a run."""
    for family, kind in sorted(BUILTINS.entries):
        document = copy.deepcopy(BASE)
        fields = NEEDED.get((family, kind), {})
        if family in PLACES:
            section = document.get(PLACES[family], {})
            common = {k: v for k, v in section.items() if k in {"lr", "t_warmup"}}
            document[PLACES[family]] = {"name": kind, **common, **fields}
        elif family in {"callback", "logger"}:
            document[f"{family}s"] = {kind: fields}
        elif family == "data":
            document["train_loader"] = EXAMPLES if kind == "finetuning" else TEXT
        elif family == "preprocessor":
            dataset = {**EXAMPLES["dataset"], "preprocessing_fn": kind}  # type: ignore[dict-item]
            document["train_loader"] = {**EXAMPLES, "dataset": dataset}
        else:
            raise AssertionError(f"no document for {family} {kind}")
        yield f"{family} {kind}", document
    for name, sections in MORE.items():
        yield name, {**copy.deepcopy(BASE), **sections}


def spec_class(document: dict[str, Any]) -> type[RunSpec]:
    loader = document.get("train_loader")
    is_finetuning = isinstance(loader, dict) and loader.get("name") == "finetuning"
    return FinetuneSpec if is_finetuning else PretrainSpec


def resolve(document: dict[str, Any]) -> tuple[RunSpec, tuple[str, ...], dict[str, Any]]:
    spec, notices = run_spec(from_values(document), spec_class(document), BUILTINS)
    return spec, notices, unstructure(spec)


WHOLE: dict[str, dict[str, Any]] = {name: resolve(each)[2] for name, each in documents()}


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every value that is inside of another one."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in sorted(value):
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from leaves(each, (*path, index))


def at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


NUMBERS = st.sampled_from(
    [
        *(0, 1, -1, 2, 7, 2**31, 2**64, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e300, 1e-4),
        *(math.inf, -math.inf, math.nan),
    ]
)
NEAR = st.sampled_from(
    [
        *("", " ", "0", "1", "auto", "none", "null", "true", "1ep", "10ba", "3sp", "1dur"),
        *("0.5dur", "-1ba", "2tok", "1e400ba", "9" * 50, "../x", "/x", "a/b", "a\0b", "name", "é"),
        *("FULL_SHARD", "fp32", "amp_bf16", "adamw", "flash", "torch", "random", "fixed", "train"),
    ]
)
PLAIN = st.none() | st.booleans() | NUMBERS | NEAR | st.integers() | st.floats()
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.dictionaries(NEAR | st.text("abc", max_size=3), PLAIN, max_size=2),
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, Path, dict[str, Any]]:
    """Return the name of a whole document, where it was changed, and the document."""
    name = draw(st.sampled_from(sorted(WHOLE)))
    document = copy.deepcopy(WHOLE[name])
    path = draw(st.sampled_from(list(leaves(document))))
    at(document, path[:-1])[path[-1]] = draw(VALUES)
    return name, path, document


def same(given: Any, found: Any) -> bool:
    """Whether ``found`` says what was given: alike, or in the one form that is printed."""
    if isinstance(given, dict) and isinstance(found, dict):
        return set(given) <= set(found) and all(same(given[key], found[key]) for key in given)
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(map(same, given, found))
    if isinstance(found, dict | list):
        # An empty section, or a component named without fields: what it holds are its defaults.
        return given is None or given == []
    if isinstance(found, str) and isinstance(given, str | int) and not isinstance(given, bool):
        return str(given) == found or _duration(given) == _duration(found) is not None
    return _same_scalar(given, found)


def _same_scalar(given: Any, found: Any) -> bool:
    if isinstance(found, float) and type(given) in {int, float}:
        return math.isclose(given, found) or (math.isnan(given) and math.isnan(found))
    return type(given) is type(found) and bool(given == found)


def _duration(value: str | int) -> Duration | None:
    try:
        return Duration.parse(value)
    except (SpecError, OverflowError):
        return None


def check_message(error: SpecError) -> None:
    assert str(error)
    assert all(line and len(line) < 2000 for line in str(error).split("\n"))


def check(name: str, path: Path, document: dict[str, Any]) -> None:
    given = at(document, path)
    try:
        spec, notices, resolved = resolve(document)
    except SpecError as error:
        check_message(error)
        return
    found = at(resolved, path)
    where = f"{name}: {'.'.join(map(str, path))}: {given!r} became {found!r}"
    if given is None and path[-1] in FILLED:
        assert found == FILLED[path[-1]]
        return
    assert same(given, found) or any(str(path[-1]) in notice for notice in notices), where
    again = resolve(resolved)[0]
    assert again == spec or resolve(resolved)[2] == resolved, where


COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_documents_hold_every_kind() -> None:
    assert {f"{family} {kind}" for family, kind in BUILTINS.entries} <= set(WHOLE)
    assert sum(1 for document in WHOLE.values() for _ in leaves(document)) > 3000


@settings(COMMON, max_examples=200, derandomize=True)
@given(change=changed())
def test_a_changed_value_is_refused_or_kept(change: tuple[str, Path, dict[str, Any]]) -> None:
    check(*change)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@settings(COMMON, max_examples=2500)
@given(change=changed())
def test_ten_thousand_changed_values_are_refused_or_kept(
    part: int, change: tuple[str, Path, dict[str, Any]]
) -> None:
    del part
    check(*change)


@settings(COMMON, max_examples=100, derandomize=True)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    data=st.data(),
    key=st.text("abcdelmnort_", min_size=1, max_size=10),
)
def test_a_key_that_there_is_not_is_never_passed_over(
    name: str, data: st.DataObject, key: str
) -> None:
    document = copy.deepcopy(WHOLE[name])
    sections = [path for path in leaves(document) if isinstance(at(document, path), dict)]
    path = data.draw(st.sampled_from([(), *sections]))
    if key in at(document, path):
        return
    at(document, path)[key] = 7
    try:
        _, notices, resolved = resolve(document)
    except SpecError as error:
        check_message(error)
        return
    assert at(resolved, path).get(key) == 7 or any(key in notice for notice in notices)
