"""Spec files of the project, and LLM Foundry's, through the real components."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs.document import from_values
from foundry_sdk.specs.run import FinetuneSpec, PretrainSpec
from foundry_sdk.specs.structure import plain, read, run_spec, spec_class, to_yaml, unstructure
from foundry_sdk.units import Duration

ROOT = Path(__file__).parents[2]
LLM_FOUNDRY = Path(__file__).parent / "data" / "llm-foundry-mpt-125m.yaml"
FINETUNING = sorted(LLM_FOUNDRY.parent.glob("llm-foundry-finetune-*.yaml"))
EXAMPLES = [
    path
    for path in sorted(ROOT.glob("examples/**/*.yaml"))
    if "train_loader:" in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def builtins() -> Catalog:
    return PluginHost.load([], strict=True).catalog()


def test_a_pretraining_file_of_llm_foundry_is_read_unchanged(builtins: Catalog) -> None:
    spec, notices = read(LLM_FOUNDRY, PretrainSpec, catalog=builtins)
    assert [notice.partition(":")[0] for notice in notices] == ["fsdp_config.limit_all_gathers"]
    assert spec.model.kind == "mpt_causal_lm"
    assert spec.max_seq_len == spec.model.max_sequence_length() == 2048
    assert spec.max_duration == Duration.parse("4800ba")
    assert spec.optimizer.lr == 6e-4
    assert spec.seed == 17
    assert spec.fsdp_config is not None
    assert spec.fsdp_config.mixed_precision == "PURE"
    assert [callback.kind for callback in spec.callbacks] == [
        "speed_monitor",
        "lr_monitor",
        "memory_monitor",
        "runtime_estimator",
    ]
    assert run_spec(from_values(unstructure(spec)), PretrainSpec, builtins) == (spec, ())


@pytest.mark.parametrize("path", FINETUNING, ids=lambda path: path.stem)
def test_finetuning_files_of_llm_foundry_are_read_unchanged(builtins: Catalog, path: Path) -> None:
    assert spec_class(path) is FinetuneSpec
    spec, _ = read(path, FinetuneSpec, catalog=builtins)
    assert spec.train_loader.dataset.max_seq_len == spec.max_seq_len
    for evaluation in spec.eval_loader:
        assert evaluation.loader.dataset.max_seq_len == spec.max_seq_len
    assert run_spec(from_values(unstructure(spec)), FinetuneSpec, builtins)[0] == spec


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_a_spec_without_notices_and_reads_back(
    builtins: Catalog, path: Path
) -> None:
    of = spec_class(path)
    spec, notices = read(path, of, catalog=builtins)
    assert notices == ()
    assert run_spec(from_values(unstructure(spec)), of, builtins)[0] == spec


@pytest.mark.parametrize("path", [LLM_FOUNDRY, *FINETUNING, *EXAMPLES], ids=lambda path: path.stem)
def test_what_is_printed_is_printed_alike_once_it_is_read(
    builtins: Catalog, path: Path, tmp_path: Path
) -> None:
    of = spec_class(path)
    printed = to_yaml(read(path, of, catalog=builtins)[0])
    again = tmp_path / "printed.yaml"
    again.write_text(printed, encoding="utf-8")
    assert to_yaml(read(again, of, catalog=builtins)[0]) == printed


def test_whole_numbers_are_printed_as_what_their_field_is() -> None:
    @attrs.frozen(kw_only=True)
    class Numbers:
        rate: float = 4
        maybe: float | None = 4
        ratio: float | str | None = 4
        either: int | float = 4
        exact: float | Literal[4] = 4
        pair: tuple[float, int] = (4, 4)
        several: tuple[float, ...] = (4, 5)
        named: Mapping[str, float] = attrs.field(factory=lambda: {"a": 4})
        count: int = 4
        on: bool = True
        anything: Any = 4

    assert repr(plain(Numbers())) == (
        "{'rate': 4.0, 'maybe': 4.0, 'ratio': 4.0, 'either': 4, 'exact': 4, 'pair': [4.0, 4], "
        "'several': [4.0, 5.0], 'named': {'a': 4.0}, 'count': 4, 'on': True, 'anything': 4}"
    )
