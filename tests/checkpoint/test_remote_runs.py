"""``foundry train`` with a ``save_folder`` in a bucket: the machine may be lost, the run is not."""

import importlib.util
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_found = importlib.util.spec_from_file_location(
    "train_conftest", Path(__file__).parents[1] / "cli" / "train" / "conftest.py"
)
_train = importlib.util.module_from_spec(_found)
_found.loader.exec_module(_train)
material, spec, losses = _train.material, _train.spec, _train.losses
foundry, start = _train.foundry, _train.start


_oracles = {}


@pytest.fixture
def oracle(spec, tmp_path, foundry, losses):
    """Return a function that gives the losses of a run that nothing happened to."""

    def run(nproc):
        if nproc not in _oracles:
            done = foundry("train", spec(), "-n", nproc, "run_name=oracle")
            assert done.returncode == 0, done.stderr
            _oracles[nproc] = losses(tmp_path / "runs" / "oracle")
        return _oracles[nproc]

    return run


@pytest.fixture
def train(spec, foundry, bucket):
    """Return a function that trains with the bucket as save_folder."""

    def run(*options, nproc=1, **environment):
        resume = ("autoresume=true", f"save_folder={bucket.uri}")
        return foundry("train", spec(), "-n", nproc, *resume, *options, **environment)

    return run


@pytest.mark.parametrize("nproc", [1, 2])
def test_another_machine_goes_on_as_if_nothing_had_been(
    *, nproc, bucket, train, oracle, losses, tmp_path
):
    expected = oracle(nproc)
    run = tmp_path / "runs" / "run"
    fault = {"FOUNDRY_FAULT": "checkpoint.committed:2:kill"}  # step 6 is on the disk only
    killed = train(nproc=nproc, **fault)
    assert killed.returncode != 0
    stored = bucket.whole()
    assert stored in ([3], [])  # as far as its copy had come when the run was killed
    before = losses(run)
    shutil.rmtree(run)
    done = train(nproc=nproc)
    assert done.returncode == 0, done.stderr
    assert bucket.whole() == [6, 9]  # save_num_checkpoints_to_keep: 2
    after = losses(run)
    assert {**before, **after} == expected
    assert sorted(after) == list(range(4 if stored else 1, 10))
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"


def test_what_a_killed_run_left_on_its_disk_is_stored_when_it_goes_on(
    bucket, train, oracle, losses, tmp_path
):
    expected = oracle(1)
    killed = train(FOUNDRY_FAULT="remote.commit:2:kill")
    assert killed.returncode != 0
    assert bucket.whole() == [3]
    done = train("save_num_checkpoints_to_keep=-1")
    assert done.returncode == 0, done.stderr
    assert bucket.whole() == [3, 6, 9]
    assert losses(tmp_path / "runs" / "run") == expected


def test_a_flipped_byte_in_the_bucket_costs_one_interval_and_is_told(
    bucket, train, oracle, losses, tmp_path
):
    expected = oracle(1)
    assert train("max_duration=6ba", "scheduler.t_max=9ba").returncode == 0
    run = tmp_path / "runs" / "run"
    shutil.rmtree(run)
    (key,) = (key for key in sorted(bucket.keys()) if "step-000006/shard" in key)
    bucket.flip(key, random.Random(1).randrange(10**6))  # noqa: S311
    done = train()
    assert done.returncode == 0, done.stderr
    assert "passed over a checkpoint" in done.stderr + done.stdout
    assert "its SHA-256 is not that of the manifest" in done.stderr + done.stdout
    assert losses(run) == {step: loss for step, loss in expected.items() if step > 3}


def test_a_server_that_never_answers_fails_the_run_before_any_work(bucket, train):
    bucket.server.fault = lambda method, path: "hang" if bucket.name in path else None
    done = train(nproc=2, FOUNDRY_REMOTE_DEADLINE="1.5")
    bucket.server.release.set()
    assert done.returncode == 1
    assert f"{bucket.uri}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error") <= 2


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_server_that_dies_later_does_not_stop_training_but_ends_it_with_an_error(
    *, nproc, bucket, train, oracle, losses, tmp_path
):
    bucket.server.fault = lambda method, path: (
        "503" if method == "PUT" and "step-000003" not in path and "step-" in path else None
    )
    done = train(nproc=nproc, FOUNDRY_REMOTE_DEADLINE="1.5")
    assert done.returncode == 1, done.stderr
    assert "step-000009: not stored in s3://" in done.stderr
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert sorted(losses(run)) == list(range(1, 10))
    bucket.server.fault = lambda method, path: None
    again = train(nproc=nproc)  # nothing is left to train
    assert again.returncode == 0, again.stderr
    assert 9 in bucket.whole()


def test_sigterm_ends_a_run_when_its_last_checkpoint_is_stored(
    *, bucket, spec, start, losses, tmp_path
):
    resume = ("autoresume=true", f"save_folder={bucket.uri}")
    process = start("train", spec("6000ba"), "-n", 2, *resume, "save_interval=1000ba")
    run = tmp_path / "runs" / "run"
    end = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or max(losses(run), default=0) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert bucket.whole() == [max(losses(run))]


def test_load_path_in_a_bucket_begins_another_run(
    *, bucket, train, spec, foundry, tmp_path, losses
):
    assert train().returncode == 0
    done = foundry(
        "train", spec(), "run_name=next", f"load_path={bucket.uri}", "load_weights_only=true"
    )
    assert done.returncode == 0, done.stderr
    first = losses(tmp_path / "runs" / "run")
    assert losses(tmp_path / "runs" / "next")[1] < first[1]
    assert not (tmp_path / "runs" / "next" / "cache" / "load_path").exists()


def test_save_overwrite_replaces_what_an_earlier_run_stored(bucket, spec, foundry):
    def run(*options):
        return foundry("train", spec(), f"save_folder={bucket.uri}", *options)

    assert run().returncode == 0
    refused = run("run_name=other")
    assert refused.returncode != 0
    assert "already holds checkpoints" in refused.stderr
    assert run("save_overwrite=true", "max_duration=4ba").returncode == 0
    assert bucket.whole() == [3, 4]


def test_no_secret_reaches_the_run_s_folder(bucket, train, spec, foundry, tmp_path):
    assert train().returncode == 0
    done = foundry("train", spec(), "run_name=other", "save_folder=memory://me:hunter2@host/run")
    assert done.returncode == 0, done.stderr
    assert "memory://<redacted>@host/run" in (tmp_path / "runs/other/spec.yaml").read_text()
    bad = foundry("train", spec(), "run_name=third", "save_folder=s3://key:hunter2@b/run")
    gone = foundry("train", spec(), "run_name=next", "save_folder=ftp://me:hunter2@127.0.0.1:1/run")
    assert bad.returncode != 0
    assert gone.returncode != 0
    assert "127.0.0.1:1/run" in gone.stderr
    for told in (done, bad, gone):
        assert "hunter2" not in told.stderr + told.stdout
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"testing-secret-key" not in content, path
            assert b"hunter2" not in content, path


@pytest.mark.parametrize(("nproc", "moments"), [(1, (5, 18, 31)), (2, (9, 27))])
def test_sigkill_at_any_moment_of_the_remote_work(
    *, nproc, moments, bucket, train, oracle, losses, tmp_path
):
    expected = oracle(nproc)
    run = tmp_path / "runs" / "run"
    seen, kills = {}, 0
    for nth in moments:
        killed = train(nproc=nproc, FOUNDRY_FAULT=f"remote.*:{nth}:kill")
        if run.exists() and (run / "metrics.jsonl").exists():
            for step, loss in losses(run).items():
                assert expected[step] == loss
                seen[step] = loss
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL or killed.returncode > 0
        kills += 1
        shutil.rmtree(run)
    done = train(nproc=nproc)
    assert done.returncode == 0, done.stderr
    seen |= losses(run) if (run / "metrics.jsonl").exists() else {}
    assert seen == expected
    assert kills >= 2
    assert bucket.whole()[-1] == 9
    assert os.listdir(run / "checkpoints")
