"""``foundry check`` and ``foundry schema`` as processes: output, exit codes, no tracebacks."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from foundry_sdk.specs.document import from_values
from foundry_sdk.specs.run import PretrainSpec
from foundry_sdk.specs.structure import read, run_spec
from foundry_sdk.specs.yaml_text import parse

Foundry = Callable[..., subprocess.CompletedProcess[str]]
LLM_FOUNDRY = Path(__file__).parents[1] / "specs" / "data" / "llm-foundry-mpt-125m.yaml"


def test_check_prints_the_resolved_spec_then_the_notices(foundry: Foundry, tmp_path: Path) -> None:
    done = foundry("check", str(LLM_FOUNDRY), "optimizer.lr=3e-4", "callbacks.lr_monitor=null")
    assert done.returncode == 0
    [notice] = done.stderr.splitlines()
    assert notice.startswith("notice: fsdp_config.limit_all_gathers: accepted without effect")
    assert notice.endswith("llm-foundry-mpt-125m.yaml:90)")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(done.stdout, encoding="utf-8")
    spec, notices = read(resolved, PretrainSpec)
    assert notices == ()
    assert spec.optimizer.lr == 3e-4
    assert spec == read(LLM_FOUNDRY, PretrainSpec, ["optimizer.lr=3e-4"])[0]


def test_check_hides_secrets(foundry: Foundry) -> None:
    done = foundry("check", str(LLM_FOUNDRY), "metadata.api_key=0123456789abcdef")
    assert done.returncode == 0
    assert "0123456789abcdef" not in done.stdout
    assert "api_key: <redacted>" in done.stdout


def test_check_quiet_prints_notices_only(foundry: Foundry) -> None:
    done = foundry("check", "-q", str(LLM_FOUNDRY))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1


ROWS = {
    "1 missing file": (None, [], "no such file (looked from "),
    "2 empty": ("", [], "the file is empty; a spec needs at least model"),
    "3 bad yaml": ("a: [1\nb: 2\n", [], "run.yaml:2:2: bad YAML"),
    "4 tab": ("a:\n\tb: 1\n", [], "run.yaml:2:1: bad YAML: a tab where YAML wants spaces"),
    "5 duplicate key": ("a: 1\nb: 2\na: 3\n", [], "key 'a' is given twice: lines 1 and 3"),
    "6 list": ("- a\n", [], "expected a mapping"),
    "7 python tag": ("a: !!python/object/new:os.system [id]\n", [], "tag refused: !!python/obj"),
    "8 alias bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
            for before, name in zip("abcdefg", "bcdefgh", strict=True)
        ),
        [],
        "expansion limit",
    ),
    "9 unknown key": ("sede: 1\n", [], "sede: unknown key; did you mean 'seed'? (run.yaml:1)"),
    "10 wrong type": ("seed: x\n", [], "seed: expected a whole number, got 'x' (run.yaml:1)"),
    "12 yes for a text": ("run_name: 5\n", [], "run_name: expected a text or null, got 5"),
    "13 unset reference": ("seed: ${SEED_OF_MINE}\n", [], "${SEED_OF_MINE} names nothing"),
    "14 cycle": ("seed: ${a}\na: ${b}\nb: ${a}\n", [], "a -> b -> a"),
    "15 not utf-8": (b"seed: \xff\n", [], "byte 6 (0xff) is not UTF-8"),
    "16 override without =": ("seed: 1\n", ["seed"], "override 'seed': expected key=value"),
    "17 below a scalar": ("seed: 1\n", ["seed.x=1"], "override 'seed.x=1': seed is 1, so there"),
    "23 batch 0": ("global_train_batch_size: 0\n", [], "must be > 0, got 0"),
    "26 sequence length 0": ("max_seq_len: 0\n", [], "max_seq_len: must be > 0, got 0"),
    "30 unit": ("max_duration: 10xx\n", [], "unknown unit 'xx'; units are ep, ba, sp, tok, dur"),
    "36 seed": ("seed: 4294967295\n", [], "seed: must lie between 0 and 4294967294"),
    "37 precision": (
        "precision: fp8\n",
        [],
        "expected one of fp32, amp_bf16, amp_fp16, amp_fp8, got 'fp8'",
    ),
    "40 unknown name": (
        "optimizer: {name: decoupled_lion, lr: 1}\n",
        [],
        "no optimizer is named 'decoupled_lion'; did you mean 'decoupled_lionw'",
    ),
    "41 wrong family": (
        "model: {name: decoupled_lionw}\n",
        [],
        "'decoupled_lionw' is an optimizer",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_exit_code_2_in_few_lines(foundry: Foundry, tmp_path: Path, row: str) -> None:
    content, overrides, message = ROWS[row]
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "run.yaml").write_bytes(data)
    done = foundry("check", "run.yaml", *overrides)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    about_it = [line for line in done.stderr.splitlines() if "required, but not given" not in line]
    assert 1 <= len(about_it) <= 5
    assert all(line.startswith("error: ") for line in about_it)
    assert "Traceback" not in done.stderr


def test_a_folder_is_no_file(foundry: Foundry) -> None:
    done = foundry("check", ".")
    assert (done.returncode, "is a directory" in done.stderr) == (2, True)


@pytest.mark.parametrize("words", [("--debug", "check", "x.yaml"), ("check", "x.yaml", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(
    foundry: Foundry, words: tuple[str, ...]
) -> None:
    done = foundry(*words)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr


def test_the_schema_takes_the_file_of_llm_foundry(foundry: Foundry, tmp_path: Path) -> None:
    done = foundry("schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    values = parse(LLM_FOUNDRY.read_text(encoding="utf-8")).values
    validator.validate(values)
    assert not validator.is_valid({**values, "sede": 1})
    written = foundry("schema", "--out", "schema.json")
    assert (written.returncode, written.stdout) == (0, "wrote schema.json\n")
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == schema
    refused = foundry("schema", "--out", "no/such/folder.json")
    assert (refused.returncode, "cannot be written" in refused.stderr) == (2, True)


def test_help_has_examples_and_version_is_the_packages(foundry: Foundry) -> None:
    for command in ("check", "schema", "plugins"):
        done = foundry(command, "-h")
        assert done.returncode == 0
        assert f"foundry {command}" in done.stdout
        assert "Examples:" in done.stdout
    assert foundry("--version").stdout.startswith("foundry-sdk 0.")
    assert foundry("--help").returncode == 0
    assert foundry("chek").returncode == 2


def test_a_resolved_spec_is_the_same_run_again(foundry: Foundry) -> None:
    from foundry_sdk.plugin.host import PluginHost

    done = foundry("check", str(LLM_FOUNDRY))
    catalog = PluginHost.load([]).catalog()
    again, _ = run_spec(from_values(parse(done.stdout).values), PretrainSpec, catalog)
    assert again == read(LLM_FOUNDRY, PretrainSpec, catalog=catalog)[0]
