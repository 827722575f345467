"""From YAML to typed specs: types, tags, and every mistake of a file in one report."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.errors import PluginError, SpecError
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.specs.document import from_values
from foundry_sdk.specs.run import (
    AlgorithmsSpec,
    EvalLoader,
    FSDPSpec,
    GradientClippingSpec,
    PretrainSpec,
)
from foundry_sdk.specs.structure import read, run_spec, to_yaml, unstructure
from foundry_sdk.units import Duration, TimeUnit

Reader = Callable[..., tuple[PretrainSpec, tuple[str, ...]]]


def mistakes(read_text: Reader, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_text(text, *overrides)
    return str(caught.value).splitlines()


def test_a_file_becomes_the_spec_that_python_would_write(
    read_text: Reader, good: str, tiny: ModuleType
) -> None:
    spec, notices = read_text(good)
    assert notices == ()
    assert spec == PretrainSpec(
        model=tiny.TinyModel(
            d_model=16, max_seq_len=32, attn=tiny.TinyAttention(attn_impl="flash")
        ),
        tokenizer=TokenizerSpec(name="some/tokenizer"),
        optimizer=tiny.Momentum(lr=1e-4, betas=(0.9, 0.95)),
        scheduler=tiny.Cosine(t_warmup=Duration(2, TimeUnit.BATCH)),
        train_loader=tiny.Shards(
            dataset=tiny.TinyDataset(local="/data/train", max_seq_len=32), num_workers=2
        ),
        max_duration="10ba",
        max_seq_len=32,
        global_train_batch_size=8,
        seed=3,
        callbacks=[tiny.Watch(window=5), tiny.Bell()],
    )


def test_ints_become_floats_and_nothing_else_changes_its_type(read_text: Reader, good: str) -> None:
    spec, _ = read_text(good, "optimizer.lr=1", "model.ratio=3")
    assert type(spec.optimizer.lr) is float
    assert type(spec.model.ratio) is float  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=fast", "optimizer.lr: expected a number, got 'fast'"),
        ("optimizer.lr='1e-4'", "optimizer.lr: expected a number, got '1e-4'; without quotes?"),
        ("optimizer.lr=true", "optimizer.lr: expected a number, got true"),
        ("optimizer.lr=-1", "optimizer.lr: must be a finite number >= 0, got -1.0"),
        ("optimizer.lr=.nan", "optimizer.lr: must be a finite number >= 0, got nan"),
        ("optimizer.lr=.inf", "optimizer.lr: must be a finite number >= 0, got inf"),
        ("optimizer.decay=-0.5", "optimizer.decay: must be >= 0, got -0.5"),
        ("optimizer.betas=[0.9]", "optimizer.betas: expected a list of 2 items, got 1"),
        ("optimizer.betas=0.9", "optimizer.betas: expected a list, got 0.9"),
        ("optimizer.betas=[0.9, x]", "optimizer.betas[1]: expected a number, got 'x'"),
        ("model.d_model=8.5", "model.d_model: expected a whole number, got 8.5"),
        ("model.d_model='8'", "model.d_model: expected a whole number, got '8'; without quotes?"),
        ("model.d_model=0", "model.d_model: must be > 0, got 0"),
        ("model.logit_scale=[1]", "model.logit_scale: expected a number or a text or null, got a"),
        ("model.attn=flash", "model.attn: expected a mapping with attn_impl, alibi, got 'flash'"),
        (
            "model.attn.attn_impl=flsh",
            "model.attn.attn_impl: expected one of torch, flash, got 'flsh'; did you mean 'flash'?",
        ),
        ("model.attn.alibi='false'", "expected true or false, got 'false'; without quotes?"),
        ("model.attn.alibi=yes", "model.attn.alibi: expected true or false, got 'yes'"),
        ("model=tiny", "model: expected a mapping with name: (known: tiny), got 'tiny'"),
        ("model.name=tny", "no model is named 'tny'; did you mean 'tiny'?; known: tiny"),
        ("model.name=null", "model.name: required: which model, got nothing (null); known: tiny"),
        ("model.name=watch", "no model is named 'watch'; 'watch' is a callback; known: tiny"),
        ("tokenizer.name=5", "tokenizer.name: expected a text, got 5; with quotes it is a text"),
        ("run_name=1", "run_name: expected a text or null, got 1"),
        ("max_duration=10xx", "unknown unit 'xx'; units are ep, ba, sp, tok, dur, sec"),
        ("max_duration=1.5ba", "'ba' comes in whole numbers"),
        ("max_duration=true", "expected a duration such as '100ba' or '1ep', got True"),
        (
            "precision=fp16",
            "expected one of fp32, amp_bf16, amp_fp16, amp_fp8, got 'fp16'; did you mean",
        ),
        ("sede=3", "sede: unknown key; did you mean 'seed'?"),
        ("data_local=x", "unknown key; a value that is only there for ${...} belongs under 'var"),
        ("callbacks=[watch]", "callbacks[0]: expected a mapping with name: (known: bell, watch)"),
        ("callbacks.watch=5", "callbacks.watch: expected a mapping with window, keys, got 5"),
        ("callbacks.watch.keys=a", "callbacks.watch.keys: expected a list or null, got 'a'"),
        ("callbacks.wach={}", "callbacks.wach: no callback is named 'wach'; did you mean 'watch'?"),
        ("callbacks.async_eval={}", "callback 'async_eval' is not supported here; "),
        ("loggers.mosaicml={}", "logger 'mosaicml' is not supported here; use wandb"),
        ("device_train_microbatch_size=8.5", "expected a whole number or one of auto, got 8.5"),
        ("device_train_microbatch_size=all", "expected a whole number or one of auto, got 'all'"),
        ("dist_timeout=1" + "0" * 400, "dist_timeout: is too large a number"),
    ],
)
def test_one_wrong_value_is_one_line(
    read_text: Reader, good: str, override: str, message: str
) -> None:
    [line] = mistakes(read_text, good, override)
    assert message in line
    assert line.startswith(f"override {override!r}: ")


def test_what_a_whole_class_refuses_is_said_of_its_mapping(
    read_text: Reader, good: str, tmp_path: Path
) -> None:
    [line] = mistakes(read_text, good, "model.d_model=7")
    assert line == f"model: d_model 7 is no multiple of n_heads 2 ({tmp_path / 'run.yaml'}:5)"


BAD = """\
max_seq_len: 32
model:
  name: tiny
  d_model: 15
  attn:
    alibi: "true"
tokenizer:
  nam: some/tokenizer
optimizer:
  name: momentum
  lr: fast
  beta: [0.9, 0.95]
scheduler: {name: cosine, t_warmup: 20ba}
train_loader:
  name: shards
  dataset:
    locl: /data
max_duration: 10ba
seed: -1
save_interval: 0ba
callbacks:
  watch:
    window: "5"
  bel:
"""


def test_every_mistake_of_a_file_is_in_one_report_with_its_line(
    read_text: Reader, tmp_path: Path
) -> None:
    file = str(tmp_path / "run.yaml")
    assert mistakes(read_text, BAD) == [
        f"global_train_batch_size: required, but not given ({file})",
        f"model.attn.alibi: expected true or false, got 'true'; without quotes? ({file}:6)",
        f"tokenizer.name: required, but not given ({file}:7)",
        f"tokenizer.nam: unknown key; did you mean 'name'? ({file}:8)",
        f"optimizer.lr: expected a number, got 'fast' ({file}:11)",
        f"optimizer.beta: unknown key; did you mean 'betas'? ({file}:12)",
        f"scheduler.t_warmup: a warmup of '20ba' is longer than the run ('10ba') ({file}:13)",
        f"train_loader.dataset.local: required, but not given ({file}:16)",
        f"train_loader.dataset.locl: unknown key; did you mean 'local'? ({file}:17)",
        f"seed: must lie between 0 and 4294967294, got -1 ({file}:19)",
        f"save_interval: must be longer than 0, got '0ba' ({file}:20)",
        f"callbacks.watch.window: expected a whole number, got '5'; without quotes? ({file}:23)",
        f"callbacks.bel: no callback is named 'bel'; did you mean 'bell'?; known: bell, watch "
        f"({file}:24)",
    ]


def test_an_empty_mapping_lists_what_is_required(catalog: Catalog) -> None:
    with pytest.raises(SpecError) as caught:
        run_spec(from_values({}), PretrainSpec, catalog)
    missing = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert missing == [
        "model",
        "tokenizer",
        "optimizer",
        "scheduler",
        "train_loader",
        "max_duration",
        "max_seq_len",
        "global_train_batch_size",
    ]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("eval_loader: {name: shards, dataset: {local: x}}", [None]),
        ("eval_loader: {label: a, name: shards, dataset: {local: x}}", ["a"]),
        ("eval_loader: [{label: a, name: shards, dataset: {local: x}}]", ["a"]),
        (
            "eval_loader:\n- {label: a, name: shards, dataset: {local: x}}\n"
            "- {label: b, name: shards, dataset: {local: y}}",
            ["a", "b"],
        ),
        ("eval_loader:", []),
    ],
)
def test_an_eval_loader_is_one_loader_or_a_list_with_labels(
    read_text: Reader, good: str, text: str, labels: list[str | None], tiny: ModuleType
) -> None:
    spec, _ = read_text(f"{good}{text}\n")
    assert [entry.label for entry in spec.eval_loader] == labels
    for entry, local in zip(spec.eval_loader, "xy", strict=False):
        assert entry.loader == tiny.Shards(dataset=tiny.TinyDataset(local=local, max_seq_len=32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval_loader: {name: shards, dataset: {lcal: x}}", "eval_loader.dataset.lcal: unknown"),
        ("eval_loader: [{name: shards, dataset: 3}]", "eval_loader[0].dataset: expected a mapping"),
        (
            "eval_loader: [{name: shards, dataset: {local: x}}, "
            "{label: b, name: shards, dataset: {local: x}}]",
            "eval_loader[0].label: required where there are several eval loaders",
        ),
        (
            "eval_loader: [{label: b, name: shards, dataset: {local: x}}, "
            "{label: b, name: shards, dataset: {local: x}}]",
            "eval_loader: the label 'b' is given 2 times",
        ),
        ("eval_loader: {label: 3, name: shards, dataset: {local: x}}", "label: expected a text"),
        ("eval_loader: {label: a/b, name: shards, dataset: {local: x}}", "got 'a/b'"),
    ],
)
def test_what_is_wrong_in_an_eval_loader(
    read_text: Reader, good: str, text: str, message: str
) -> None:
    assert any(message in line for line in mistakes(read_text, f"{good}{text}\n"))


def test_algorithms_and_callbacks_without_fields_have_their_defaults(
    read_text: Reader, good: str
) -> None:
    spec, _ = read_text(f"{good}algorithms:\n  gradient_clipping:\nloggers:\n")
    assert spec.algorithms == AlgorithmsSpec(gradient_clipping=GradientClippingSpec())
    assert spec.loggers == ()
    assert read_text(f"{good}algorithms:\n")[0].algorithms == AlgorithmsSpec()


def test_a_logger_may_have_a_field_called_name(
    read_text: Reader, good: str, tiny: ModuleType
) -> None:
    spec, _ = read_text(good + "loggers: {notebook: {name: mine}}\n")
    assert spec.loggers == (tiny.Notebook(name="mine"),)


def test_a_component_may_hold_another(read_text: Reader, good: str, tiny: ModuleType) -> None:
    spec, _ = read_text(good, "train_loader.preprocessor={name: acme/recipes, style: long}")
    assert spec.train_loader.preprocessor == tiny.Recipes(style="long")  # type: ignore[attr-defined]


def test_master_weights_dtype_of_the_model_becomes_the_weights(
    read_text: Reader, good: str, tiny: ModuleType
) -> None:
    assert read_text(good)[0].loss is None
    key = "model.master_weights_dtype"
    assert read_text(good, f"{key}=bf16")[0].weights == "bf16"
    assert read_text(good, f"{key}=null")[0].weights == "auto"
    [line] = mistakes(read_text, good, f"{key}=f16")
    assert f"{key}: 'f16' is not supported here; use weights: bf16" in line
    [line] = mistakes(read_text, good, f"{key}=bf16", "weights=fp32")
    assert f"{key}: 'bf16' here, but 'fp32' in weights" in line


def test_loss_fn_of_the_model_becomes_the_loss(
    read_text: Reader, good: str, tiny: ModuleType
) -> None:
    assert read_text(good)[0].loss is None
    assert read_text(good, "model.loss_fn=torch_crossentropy")[0].loss == tiny.TorchLoss()
    assert read_text(good, "loss={name: torch_crossentropy}")[0].loss == tiny.TorchLoss()
    [line] = mistakes(read_text, good, "model.loss_fn=torch_crossentrpy")
    assert line.startswith("override 'model.loss_fn=torch_crossentrpy': model.loss_fn: no loss is ")
    both = ["model.loss_fn=other", "loss={name: torch_crossentropy}"]
    [line] = mistakes(read_text, good, *both)
    assert "model.loss_fn: 'other' here, but 'torch_crossentropy' in loss" in line


def test_a_sequence_length_that_is_not_given_is_that_of_the_run(
    read_text: Reader, good: str
) -> None:
    spec: Any = read_text(good)[0]
    assert (spec.model.max_seq_len, spec.train_loader.dataset.max_seq_len) == (32, 32)
    spec = read_text(good, "train_loader.dataset.max_seq_len=null")[0]
    assert spec.train_loader.dataset.max_seq_len == 32
    spec = read_text(good, "model.max_seq_len=64")[0]
    assert spec.model.max_seq_len == 64
    [line] = mistakes(read_text, good, "train_loader.dataset.max_seq_len=16")
    assert "train_loader.dataset.max_seq_len: 16 disagrees with max_seq_len 32" in line
    [line] = mistakes(read_text, good, "model.max_seq_len=16")
    assert "32 is longer than the sequences that the model takes (model: 16)" in line
    text = f"{good}eval_loader: {{name: shards, dataset: {{local: x, max_seq_len: 8}}}}\n"
    [line] = mistakes(read_text, text)
    assert line.startswith("eval_loader.dataset.max_seq_len: 8 disagrees")


def test_keys_without_effect_are_noticed_with_their_place(
    read_text: Reader, good: str, tmp_path: Path
) -> None:
    text = good.replace("  d_model: 16\n", "  d_model: 16\n  init_device: meta\n")
    _, notices = read_text(
        f"{text}fsdp_config:\n  limit_all_gathers: true\n", "model.attn.alibi=true"
    )
    file = str(tmp_path / "run.yaml")
    assert notices == (
        "model.init_device: accepted without effect: the device is decided at the start "
        f"({file}:8)",
        f"fsdp_config.limit_all_gathers: accepted without effect: FSDP2 decides this itself "
        f"({file}:30)",
        "model.attn.alibi: replaces learned positions",
    )


def test_a_spec_is_read_back_from_its_yaml(
    read_text: Reader, good: str, catalog: Catalog, tmp_path: Path
) -> None:
    more = (
        "loss: {name: torch_crossentropy}\nloggers: {notebook: {name: '${oops'}}\n".replace(
            "${oops", "\\${not a reference}"
        )
        + "algorithms: {gradient_clipping: {clipping_type: value, clipping_threshold: 0.5}}\n"
        "fsdp_config: {sharding_strategy: SHARD_GRAD_OP}\n"
        "compile_config: {}\n"
        "metadata: {team: 'on', tags: [1, x, null], nested: {deep: 1.5}}\n"
        "eval_loader:\n- {label: a, name: shards, dataset: {local: x, streams: {s: {p: 1}}}}\n"
        "- {label: b, name: shards, dataset: {local: y}, preprocessor: {name: acme/recipes}}\n"
    )
    spec, _ = read_text(f"{good}{more}", "model.logit_scale=inv", "optimizer.disable_grad=[a, b]")
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(spec), encoding="utf-8")
    assert read(path, PretrainSpec, catalog=catalog) == (spec, ())
    assert run_spec(from_values(unstructure(spec)), PretrainSpec, catalog)[0] == spec
    assert spec.fsdp_config == FSDPSpec(sharding_strategy="SHARD_GRAD_OP")
    assert spec.loggers[0].name == "${not a reference}"  # type: ignore[attr-defined]


def test_a_spec_made_in_python_gets_the_same_checks(tiny: ModuleType) -> None:
    loader = tiny.Shards(dataset=tiny.TinyDataset(local="x"))
    good: dict[str, Any] = {
        "model": tiny.TinyModel(),
        "tokenizer": TokenizerSpec(name="t"),
        "optimizer": tiny.Momentum(lr=0.1),
        "scheduler": tiny.Cosine(t_warmup=Duration.parse("1ba")),
        "train_loader": loader,
        "max_duration": "10ba",
        "max_seq_len": 64,
        "global_train_batch_size": 4,
    }
    spec = PretrainSpec(**good, eval_loader=loader, callbacks=[tiny.Bell()])
    assert spec.eval_loader == (EvalLoader(loader=loader),)
    assert spec.callbacks == (tiny.Bell(),)
    assert spec.max_duration == Duration(10, TimeUnit.BATCH)
    with pytest.raises(SpecError) as caught:
        PretrainSpec(**{**good, "max_seq_len": 65}, seed=-1, save_interval="0ba")
    assert str(caught.value).splitlines() == [
        "seed: must lie between 0 and 4294967294, got -1",
        "save_interval: must be longer than 0, got '0ba'",
        "max_seq_len: 65 is longer than the sequences that the model takes (model: 64)",
    ]
    with pytest.raises(SpecError, match="max_seq_len: 65 is longer"):
        attrs.evolve(spec, max_seq_len=65)


def test_an_annotation_that_no_value_can_have_is_the_plugins_mistake(
    good: str, tmp_path: Path, tiny: ModuleType
) -> None:
    @attrs.frozen(kw_only=True)
    class Odd(tiny.TinyModel):  # type: ignore[misc, name-defined]
        kind = "odd"
        when: complex = 0j

    @attrs.frozen(kw_only=True)
    class Hidden(tiny.TinyModel):  # type: ignore[misc, name-defined]
        kind = "hidden"
        what: "NowhereDefined" = None  # type: ignore[name-defined]  # noqa: F821

    catalog = tiny.catalog_of_components(*tiny.COMPONENTS, Odd, Hidden)
    path = tmp_path / "run.yaml"
    path.write_text(good, encoding="utf-8")
    with pytest.raises(PluginError, match=r"cannot have a field of type .*complex"):
        read(path, PretrainSpec, ["model.name=odd", "model.when=1"], catalog=catalog)
    with pytest.raises(PluginError, match="Hidden: name 'NowhereDefined' is not defined"):
        read(path, PretrainSpec, ["model.name=hidden"], catalog=catalog)
