"""Numbers and combinations that a run may not have, and keys of LLM Foundry without a field."""

from collections.abc import Callable

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.legacy import ALGORITHMS, COMPILE, FSDP, TOP_LEVEL, LegacyKey
from foundry_sdk.specs.run import PretrainSpec

Reader = Callable[..., tuple[PretrainSpec, tuple[str, ...]]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=4294967295"], "seed: must lie between 0 and 4294967294, got 4294967295"),
        (["max_seq_len=0"], "max_seq_len: must be > 0, got 0"),
        (["global_train_batch_size=0"], "global_train_batch_size: must be > 0, got 0"),
        (
            ["device_train_microbatch_size=0"],
            "must be a number of sequences >= 1, or 'auto', got 0",
        ),
        (["device_eval_batch_size=0"], "device_eval_batch_size: must be >= 1, got 0"),
        (["eval_subset_num_batches=0"], "eval_subset_num_batches: must be >= 1, or -1 for all"),
        (["eval_subset_num_batches=-2"], "eval_subset_num_batches: must be >= 1, or -1"),
        (["save_num_checkpoints_to_keep=0"], "save_num_checkpoints_to_keep: must be >= 1, or -1"),
        (["save_folder=nonsense://a/b"], "save_folder: nonsense://a/b: no folder of checkpoints"),
        (["load_path=s3://k:hush@b/c"], "load_path: an s3:// address of checkpoints is s3://buc"),
        (["save_interval=0"], "save_interval: must be longer than 0, got '0ep'"),
        (["console_log_interval=0ba"], "console_log_interval: must be longer than 0"),
        (["max_duration=0ba", "scheduler.t_warmup=0ba"], "max_duration: must be longer than 0"),
        (["max_duration=0.5dur"], "max_duration: must not be a share of itself"),
        (["dist_timeout=0"], "dist_timeout: must be a number of seconds > 0, got 0.0"),
        (["scheduler.t_warmup=11ba"], "scheduler.t_warmup: a warmup of '11ba' is longer than the"),
        (["scheduler.t_max=9ba"], "scheduler.t_max: a schedule of '9ba' ends before the run"),
        (["run_name=../up"], "run_name: is a folder's name"),
        (["fsdp_config={activation_cpu_offload: true}"], "fsdp_config.activation_cpu_offload: not"),
        (
            ["algorithms={gradient_clipping: {clipping_threshold: 0}}"],
            "algorithms.gradient_clipping.clipping_threshold: must be > 0, got 0.0",
        ),
    ],
)
def test_what_a_run_may_not_have(
    read_text: Reader, good: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read_text(good, *overrides)
    [line] = str(caught.value).splitlines()
    assert message in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=4294967294"],
        ["seed=0"],
        ["scheduler.t_warmup=10ba"],
        ["scheduler.t_warmup=1ep"],
        ["scheduler.t_max=1dur"],
        ["eval_interval=0"],
        ["save_num_checkpoints_to_keep=-1"],
        ["autoresume=true"],
        ["device_train_microbatch_size=auto"],
        ["fsdp_config=null"],
    ],
)
def test_what_a_run_may_have(read_text: Reader, good: str, overrides: list[str]) -> None:
    assert read_text(good, *overrides)[1] == ()


KEYS = [
    (f"{section}{key}", rule)
    for section, keys in (
        ("", TOP_LEVEL),
        ("fsdp_config.", FSDP),
        ("algorithms.", ALGORITHMS),
        ("compile_config.", COMPILE),
    )
    for key, rule in keys.items()
    if key != "variables"
]


def as_yaml(value: object) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(("key", "rule"), KEYS, ids=[key for key, _ in KEYS])
def test_a_key_of_llm_foundry_is_silent_noticed_or_refused(
    read_text: Reader, good: str, key: str, rule: LegacyKey
) -> None:
    for value in rule.neutral:
        text = "[]" if value == [] else as_yaml(value) if value != {} else "{}"
        assert read_text(good, f"{key}={text}")[1] == ()
    override = f"{key}=something"
    if rule.refusal is None:
        _, notices = read_text(good, override)
        assert notices == (f"override {override!r}: {key}: {rule.notice}",)
    else:
        with pytest.raises(SpecError) as caught:
            read_text(good, override)
        assert str(caught.value) == f"override {override!r}: {key}: {rule.refusal}"


def test_limit_all_gathers_false_is_noticed_and_a_false_neutral_is_not_a_zero(
    read_text: Reader, good: str
) -> None:
    _, [notice] = read_text(good, "fsdp_config.limit_all_gathers=false")
    assert "accepted without effect" in notice
    with pytest.raises(SpecError, match="only_hf_checkpoint: not supported here"):
        read_text(good, "only_hf_checkpoint=0")


def test_options_that_do_nothing_in_this_run_are_noticed(read_text: Reader, good: str) -> None:
    _, [notice] = read_text(good, "load_weights_only=true")
    assert notice == "load_weights_only: without effect, as there is no load_path"
    assert read_text(good, "load_weights_only=true", "load_path=x")[1] == ()
    _, notices = read_text(
        good,
        "fsdp_config={activation_checkpointing_reentrant: true, state_dict_type: full}",
    )
    assert [notice.partition(":")[0] for notice in notices] == [
        "fsdp_config.activation_checkpointing_reentrant",
        "fsdp_config.state_dict_type",
    ]
