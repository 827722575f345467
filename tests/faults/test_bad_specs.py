"""A spec that no run can be made of: one message, exit code 2, before a device is taken.

Mistakes of YAML, of single fields and of names are in ``tests/cli/test_check.py``; here are those
between fields, of components, and of what an installed package offers.
"""

import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

Case = tuple[list[str], str]

NUMBERS: dict[str, Case] = {
    "a negative learning rate": (
        ["optimizer.lr=-1"],
        "optimizer.lr: must be a finite number >= 0, got -1.0",
    ),
    "a learning rate that is no number": (
        ["optimizer.lr=.nan"],
        "optimizer.lr: must be a finite number >= 0, got nan",
    ),
    "an infinite learning rate": (
        ["optimizer.lr=.inf"],
        "optimizer.lr: must be a finite number >= 0, got inf",
    ),
    "betas of one": (
        ["optimizer.betas=[0.9, 1.0]"],
        "optimizer.betas: must be two numbers in [0, 1), got (0.9, 1.0)",
    ),
    "a sequence longer than the model": (
        ["max_seq_len=32"],
        "max_seq_len: 32 is longer than the sequences that the model takes (model: 16)",
    ),
    "a width that the heads do not divide": (
        ["model.n_heads=3"],
        "model: d_model 16 is not divisible by n_heads 3",
    ),
    "heads that the key-value heads do not divide": (
        [
            "model.n_heads=4",
            "model.attn_config.attn_type=grouped_query_attention",
            "model.attn_config.kv_n_heads=3",
        ],
        "model: n_heads 4 is not divisible by kv_n_heads 3",
    ),
    "dropout above one": (
        ["model.resid_pdrop=1.5"],
        "model.resid_pdrop: must lie in [0, 1], got 1.5",
    ),
    "a warmup longer than the run": (
        ["scheduler.t_warmup=11ba"],
        "scheduler.t_warmup: a warmup of '11ba' is longer than the run ('4ba')",
    ),
    "steps beside a duration": (
        ["max_steps=10"],
        "max_steps: not supported here; the run's length is max_duration alone: a number of steps "
        "is '100ba'",
    ),
    "epochs beside a duration": (
        ["num_epochs=2"],
        "num_epochs: not supported here; the run's length is max_duration alone: a number of "
        "epochs is '2ep'",
    ),
    "checkpoints at every 0 steps": (
        ["save_interval=0ba"],
        "save_interval: must be longer than 0, got '0ba'",
    ),
    "no checkpoint to keep": (
        ["save_num_checkpoints_to_keep=0"],
        "save_num_checkpoints_to_keep: must be >= 1, or -1 for all, got 0",
    ),
    "a seed below zero": (["seed=-1"], "seed: must lie between 0 and 4294967294, got -1"),
    "fewer than no workers": (
        ["train_loader.num_workers=-1"],
        "train_loader.num_workers: must be >= 0, got -1",
    ),
    "a global batch that the ranks do not divide": (
        ["--nproc", "3", "global_train_batch_size=8"],
        "8 is not divisible by the world size 3; nearest that work: 6 or 9",
    ),
    "a learning rate as a text that is a number": (
        ["optimizer.lr='1e-4'"],
        "optimizer.lr: expected a number, got '1e-4'; without quotes?",
    ),
    "a truth value where a name belongs": (
        ["run_name=true"],
        "run_name: expected a text or null, got true; with quotes it is a text: 'true'",
    ),
    "an argument that a component does not have": (
        ["optimizer.momentum=0.9"],
        "optimizer.momentum: unknown key; known: disable_grad, param_groups, lr, betas, ",
    ),
    "a kind of another family": (["optimizer.name=text"], "no optimizer is named 'text'; 'text'"),
    "an encoding that runs code": (
        ["train_loader.dataset.allow_unsafe_types=true"],
        "allow_unsafe_types: must be False, got True: pickled columns can run code",
    ),
    "a split outside of the data": (
        ["train_loader.dataset.split=../other"],
        "dataset.split: must be a folder inside, such as 'train', got '../other'",
    ),
    "a run name that leaves the folder of runs": (
        ["run_name=../../elsewhere"],
        "run_name: is a folder's name",
    ),
}


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("case", NUMBERS)
def test_a_value_that_cannot_be_is_refused(case, foundry, material):
    words, message = NUMBERS[case]
    done = foundry("train", material.pretrain(), *words)
    assert done.code == 2
    assert done.out == ""
    assert 1 <= len(done.lines) <= 5
    assert done.err.count("\n") == len(done.lines), "something else was printed too"
    assert message in done.err


def edited(material, old: str, new: str) -> Path:
    """Write the pretraining spec with everything that ``old`` matches replaced."""
    path = material.pretrain()
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    path.write_text(text)
    return path


SHARES = {
    "all shares are zero": ("0", "0", "the streams' proportions are all 0"),
    "a negative share": ("-1", "1", "streams.a.proportion: must be >= 0, got -1.0"),
    "a share that is no number": (".nan", "1", "streams.a.proportion: must be >= 0, got nan"),
    "an infinite share": (".inf", "1", "streams.a.proportion: must be < inf, got inf"),
}


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("case", SHARES)
def test_shares_that_cannot_be_taken(case, foundry, material):
    first, second, message = SHARES[case]
    streams = f"{{a: {{local: x, proportion: {first}}}, b: {{local: y, proportion: {second}}}}}"
    path = edited(material, r"^  dataset: .*?$", f"  dataset: {{streams: {streams}}}")
    done = foundry("train", path)
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err


WEIGHTS = {"zero": "0", "negative": "-1", "no number": ".nan", "infinite": ".inf"}


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_finetuning_sources(case, foundry, material):
    source = f"{{a: {{hf_name: rows.jsonl, split: train, weight: {WEIGHTS[case]}}}}}"
    text = material.finetune().read_text()
    path = material.folder / "mixed.yaml"
    path.write_text(text[: text.index("  dataset:")] + f"  dataset: {{datasets: {source}}}\n")
    done = foundry("train", path)
    assert (done.code, len(done.lines)) == (2, 1)
    assert "weight: must be a finite number > 0" in done.err


@pytest.mark.usefixtures("no_run")
def test_a_number_without_a_point_in_its_exponent_is_a_number(material):
    from foundry_sdk.specs.run import PretrainSpec

    path = edited(material, r"lr: 0\.01", "lr: 1e-4")
    assert PretrainSpec.from_yaml(path).optimizer.lr == 1e-4


@pytest.mark.usefixtures("no_run")
def test_train_lists_every_mistake_of_a_file_at_once(foundry, material):
    more = "progress_bar: false\nsede: 3\ncallbacks: {lr: }\n"
    path = edited(material, r"^precision: fp32\nprogress_bar: false\n", f"precision: fp7\n{more}")
    done = foundry("train", path, "optimizer.lr=fast")
    assert done.code == 2
    for found in ("sede: unknown key", "precision: expected one of", "no callback is named 'lr'"):
        assert sum(found in line for line in done.lines) == 1
    assert sum("optimizer.lr: expected a number, got 'fast'" in line for line in done.lines) == 1


# ---- models


HUB = "model: {{name: hf_causal_lm, pretrained_model_name_or_path: acme/none{}}}\n"
MODELS = {
    "a model that is not on this machine, without network": ("", "the network is disabled"),
    "code of a repository without the commit that was read": (
        ", trust_remote_code: true",
        "trust_remote_code runs code from the hub, so it needs revision: <40 hexadecimal digits",
    ),
    "code of a repository at a branch, which may change": (
        ", trust_remote_code: true, revision: main",
        "needs revision: <40 hexadecimal digits of the commit that was looked at>, got 'main'",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_of_the_hub_that_cannot_be_had(case, foundry, material, alone):
    more, message = MODELS[case]
    path = edited(material, r"^model:.*?(?=^tokenizer:)", HUB.format(more))
    done = foundry("train", path)
    assert (done.code, len(done.lines)) == (2, 1)
    assert message in done.err
    assert alone == []


def test_a_vocabulary_larger_than_the_embedding(foundry, material):
    done = foundry("train", material.pretrain(), "model.vocab_size=40")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "model.vocab_size: 40 is smaller than the tokenizer's 64 tokens" in done.err


# ---- plugins


WORKING = """
import attrs
from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.hookspecs import hookimpl

@attrs.frozen(kw_only=True)
class Bell(CallbackSpec):
    kind = "acme_bell"

    def build(self, run):
        return None

@hookimpl
def foundry_components({arguments}):
    return [Bell]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts a package with an entry point on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def put(name: str, code: str) -> None:
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[foundry_sdk]\n{name} = {name}_plugin\n")
        (site / f"{name}_plugin.py").write_text(code)
        monkeypatch.delitem(sys.modules, f"{name}_plugin", raising=False)

    return put


@pytest.mark.usefixtures("no_run")
def test_a_plugin_that_cannot_be_imported_is_named_with_its_first_cause(foundry, material, install):
    install("acme", "import a_library_that_is_not_there\n")
    done = foundry("train", material.pretrain(), "callbacks.acme_bell={}")
    assert done.code == 2
    assert "no callback is named 'acme_bell'" in done.err
    assert "acme" in done.err
    assert "a_library_that_is_not_there" in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("no_run")
def test_a_plugin_of_another_interface_is_named(foundry, material, install):
    install("acme", WORKING.format(arguments="registry"))
    done = foundry("train", material.pretrain(), "callbacks.acme_bell={}")
    assert done.code == 2
    assert "no callback is named 'acme_bell'" in done.err
    assert "registry" in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("no_run")
def test_one_kind_of_two_packages_names_both(foundry, material, install):
    install("acme", WORKING.format(arguments=""))
    install("zeta", WORKING.format(arguments=""))
    done = foundry("train", material.pretrain())
    assert (done.code, len(done.lines)) == (2, 1)
    assert (
        "callback 'acme_bell' is offered by both 'acme' (acme 1.0) and 'zeta' (zeta 1.0)"
        in done.err
    )


@pytest.mark.usefixtures("no_run")
def test_a_plugin_that_is_not_allowed_names_the_value_that_allows_it(
    foundry, material, install, monkeypatch
):
    install("acme", WORKING.format(arguments=""))
    monkeypatch.setenv("FOUNDRY_PLUGINS", "")
    done = foundry("train", material.pretrain(), "callbacks.acme_bell={}")
    assert done.code == 2
    assert "set FOUNDRY_PLUGINS=acme" in done.err


# ---- packages


@pytest.mark.usefixtures("no_run")
def test_a_package_that_is_too_old_is_named_with_what_is_needed(foundry, material, monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name: str) -> str:
        return "2.5.1+cu124" if name == "torch" else real(name)

    monkeypatch.setattr("foundry_sdk.runs.machine.version", version)
    done = foundry("train", material.pretrain())
    assert (done.code, len(done.lines)) == (2, 1)
    assert "torch 2.5.1+cu124 is installed, but torch>=2.11 is needed" in done.err


def test_packages_without_metadata_and_builds_of_the_coming_release_are_no_mistake(monkeypatch):
    from foundry_sdk.runs.machine import outdated

    def version(name: str) -> str:
        if name == "torch":
            return "2.11.0a0+git1234"
        raise PackageNotFoundError(name)

    monkeypatch.setattr("foundry_sdk.runs.machine.version", version)
    assert outdated() == []
