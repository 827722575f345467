"""What the services are sent, read back from the files they keep offline."""

import json
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.callbacks.bus import EventBus
from foundry_sdk.errors import RunError, SpecError
from foundry_sdk.events import MetricsLogged, RunFinished, RunStarted, TableLogged
from foundry_sdk.loggers.memory import InMemorySpec
from foundry_sdk.loggers.services import CometSpec, MLflowSpec, TensorBoardSpec, WandBSpec
from foundry_sdk.loggers.tracker import flatten, markdown

MakeRun = Callable[..., RunStarted]
LOSSES = [3.0, 2.5, 0.1 + 0.2, 1e-7]
TABLE = TableLogged(
    step=2, name="generations", columns=("prompt", "generation"), rows=(("a", "b|c\nd"),)
)


@pytest.fixture(autouse=True, scope="module")
def _accelerate_state() -> None:
    from accelerate import PartialState

    PartialState(cpu=True)  # as the Accelerator of a run makes it


def play(logger: object, run: RunStarted, losses: list[float] = LOSSES, first: int = 1) -> None:
    bus = EventBus([logger])
    bus.run_started(run)
    for step, loss in enumerate(losses, start=first):
        bus.metrics_logged(MetricsLogged(step=step, metrics={"loss/train/total": loss, "n": 2}))
    bus.table_logged(TABLE)
    bus.run_finished(RunFinished(step=len(losses), seconds=1.0, stopped_by=None))


def tensorboard_scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_tensorboard_files_have_the_numbers(make_run: MakeRun) -> None:
    run = make_run()
    play(TensorBoardSpec().build(run), run)
    assert run.run_dir is not None
    read = tensorboard_scalars(run.run_dir / "tensorboard", "loss/train/total")
    assert [step for step, _ in read] == [1, 2, 3, 4]
    # Event files hold float32.
    assert [value for _, value in read] == pytest.approx(LOSSES, rel=1e-7)


def test_tensorboard_has_the_table_and_the_configuration(make_run: MakeRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run()
    play(TensorBoardSpec().build(run), run)
    assert run.run_dir is not None
    folder = run.run_dir / "tensorboard"
    reader = EventAccumulator(str(folder))
    reader.Reload()
    (event,) = reader.Tensors("generations/text_summary")
    assert event.tensor_proto.string_val[0].decode() == markdown(TABLE)
    (config,) = folder.glob("*/hparams.yml")
    assert "optimizer.lr: 0.0001" in config.read_text()


def test_tensorboard_of_a_resumed_run_has_one_curve(make_run: MakeRun) -> None:
    for run, losses, first in [
        (make_run(), [3.0, 2.5, 9.0], 1),
        (make_run(step=2), [2.0, 1.5], 3),
    ]:
        play(TensorBoardSpec().build(run), run, losses, first)
    assert run.run_dir is not None
    read = tensorboard_scalars(run.run_dir / "tensorboard", "loss/train/total")
    assert read == [(1, 3.0), (2, 2.5), (3, 2.0), (4, 1.5)]


def test_tensorboard_writes_where_it_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(run_dir=None)
    play(TensorBoardSpec(log_dir=str(tmp_path / "tb")).build(run), run)
    assert len(tensorboard_scalars(tmp_path / "tb" / "run-a", "n")) == 4
    with pytest.raises(SpecError, match="log_dir"):
        TensorBoardSpec().build(run)


def wandb_records(folder: Path) -> Iterator[Any]:
    """Read a log in LevelDB's format: blocks of 32 KiB; crc32, length, type before each chunk."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, whole = file.read_bytes(), 7, b""
    block = 32 * 1024
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in {1, 4}:  # a whole record, or the last chunk of one
            protobuf: Any = wandb_internal_pb2
            record = protobuf.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_keeps_the_numbers_offline(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["foundry", "train", "a.yaml", "x.api_key=canary-in-argv"])
    run = make_run()
    spec = WandBSpec(project="p", tags=("a", "b"), init_kwargs={"mode": "offline"})
    play(spec.build(run), run)
    assert run.run_dir is not None
    history: list[dict[str, Any]] = []
    configs: dict[str, Any] = {}
    runs = []
    # W&B's own process writes the file, and its last block a moment after it says goodbye.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = list(wandb_records(run.run_dir))
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.05)
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
        if kind == "run":
            runs.append(record.run)
        if kind in {"run", "config"}:
            updates = (record.run.config if kind == "run" else record.config).update
            configs |= {item.key: json.loads(item.value_json) for item in updates}
    losses = [(row["_step"], row["loss/train/total"]) for row in history]
    assert losses == list(zip([1, 2, 3, 4], LOSSES, strict=True))
    assert (runs[0].project, runs[0].run_group, runs[0].display_name) == ("p", "run-a", "run-a")
    assert list(runs[0].tags) == ["a", "b"]
    assert configs["optimizer"] == {"lr": 1e-4, "betas": [0.9, 0.95]}
    assert configs["chosen"] == {"attn_impl": "torch"}
    for file in run.run_dir.rglob("*"):
        assert not file.is_file() or b"canary" not in file.read_bytes(), file


def test_comet_keeps_the_numbers_offline(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("comet_ml", reason="comet_ml is not installed")
    monkeypatch.setattr(sys, "argv", ["foundry", "train", "a.yaml", "x.api_key=canary-in-argv"])
    run = make_run()
    config = {"offline_directory": str(tmp_path)}
    spec = CometSpec(project_name="p", exp_kwargs={"online": False, "experiment_config": config})
    play(spec.build(run), run)
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    messages = [json.loads(line) for line in contents["messages.json"].splitlines()]
    metrics = [m["payload"]["metric"] for m in messages if m["type"] == "metric_msg"]
    losses = [
        (metric["step"], metric["metricValue"])
        for metric in metrics
        if metric["metricName"] == "loss/train/total"
    ]
    assert losses == list(zip([1, 2, 3, 4], LOSSES, strict=True))
    for name, content in contents.items():
        assert b"canary" not in content, name


def test_mlflow_keeps_the_numbers_in_a_folder(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = make_run()
    store = (tmp_path / "mlruns").as_uri()
    spec = MLflowSpec(experiment_name="e", tags={"team": "x"}, tracking_uri=store)
    play(spec.build(run), run)
    client = mlflow.tracking.MlflowClient(store)
    experiment = client.get_experiment_by_name("e")
    (found,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(found.info.run_id, "loss/train/total")
    assert sorted((metric.step, metric.value) for metric in losses) == list(
        zip([1, 2, 3, 4], LOSSES, strict=True)
    )
    assert found.data.params["optimizer.lr"] == "0.0001"
    assert found.data.tags["team"] == "x"
    assert found.info.run_name == "run-a"


@pytest.mark.parametrize(
    ("spec", "module", "command"),
    [
        (TensorBoardSpec(), "tensorboard", "pip install tensorboard"),
        (WandBSpec(), "wandb", "pip install wandb"),
        (CometSpec(), "comet_ml", "pip install comet_ml"),
        (MLflowSpec(), "mlflow", "pip install mlflow"),
    ],
)
def test_a_missing_package_is_told_with_the_way_to_install_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, spec: Any, module: str, command: str
) -> None:
    monkeypatch.setattr(
        "foundry_sdk.loggers.tracker.find_spec", lambda name: None if name == module else object()
    )
    with pytest.raises(RunError, match=command):
        spec.build(make_run())


def test_specs_import_no_service() -> None:
    code = (
        "import sys, foundry_sdk.loggers.services, foundry_sdk.loggers.memory; "
        "print(sorted({'torch', 'accelerate', 'wandb', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_in_memory_is_read_from_the_spec(make_run: MakeRun) -> None:
    run = make_run()
    spec = InMemorySpec()
    play(spec.build(run), run)
    assert spec.metrics["loss/train/total"] == list(zip([1, 2, 3, 4], LOSSES, strict=True))
    assert spec.tables == [TABLE]
    assert spec == InMemorySpec()


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": "x"}}, "e": None, "f": [1, 2], "g": True, "h": {}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": "x", "f": "[1, 2]", "g": True}


def test_markdown_keeps_cells_apart() -> None:
    assert markdown(TABLE) == "| prompt | generation |\n| --- | --- |\n| a | b\\|c<br>d |"
