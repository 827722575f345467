"""Spec files of the project, and LLM Foundry's, through the real components."""

from pathlib import Path

import pytest

from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.specs.document import from_values
from foundry_sdk.specs.run import FinetuneSpec, PretrainSpec
from foundry_sdk.specs.structure import read, run_spec, spec_class, unstructure
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
def test_every_example_is_a_spec_and_reads_back(builtins: Catalog, path: Path) -> None:
    spec, _ = read(path, PretrainSpec, catalog=builtins)
    assert run_spec(from_values(unstructure(spec)), PretrainSpec, builtins)[0] == spec
