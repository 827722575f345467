"""The drill finds what is lost, visits every moment, and believes nothing that it has not seen."""

import json
import math
import time
from pathlib import Path

import attrs
import pytest

from foundry_sdk.checkpoint.layout import folder_name, step_folders
from foundry_sdk.drill.commands import Ended
from foundry_sdk.drill.rehearsal import Drill
from foundry_sdk.drill.report import markdown, rows, summary, write
from foundry_sdk.drill.subjects import TrainingRun
from foundry_sdk.errors import RunError
from foundry_sdk.faultpoints import LOG_VARIABLE, VARIABLE, Moment

STEPS, EVERY, RANKS = 5, 2, 2


class Pretended:
    """Stands in for ``foundry``: writes what a run of five steps would, faults and flaws included.

    Rank 0 reaches ``step`` five times and ``save`` three times, rank 1 ``step`` five times.
    """

    def __init__(self, flaw=None):
        self.flaw = flaw
        self.faults = []
        self.commands = []

    def run(self, arguments, *, environment, output, seconds, processes=1):
        self.commands.append(arguments)
        started = time.monotonic()
        output.touch()
        if arguments[0] == "convert":
            code = self._convert(Path(arguments[1]), environment)
        else:
            given = dict(word.split("=", 1) for word in arguments[2:])
            code = self._train(Path(given["run_root"]) / given["run_name"], environment)
        return Ended(code=code, too_late=False, started=started, ended=time.monotonic())

    def _train(self, folder, environment):
        reach = self._reach(environment)
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        start = max((step for step, _ in step_folders(checkpoints)), default=0)
        again = (folder / "samples-rank-00000.jsonl").exists()
        if again and self.flaw == "forgets":
            start = 0
        if again and self.flaw == "never ends":
            return 1
        for rank in range(RANKS):
            self._line(folder, rank, {"start": start, "world_size": RANKS})
        for step in range(start + 1, STEPS + 1):
            loss = 1 / step
            if again and self.flaw == "other bits":
                loss = math.nextafter(loss, 0)
            for rank in range(RANKS):
                samples = [10 * step + rank + (again and self.flaw == "other samples")]
                numbers = {"loss": loss, "gradient_norm": 2.0, "samples": samples}
                self._line(folder, rank, {"step": step, **numbers})
            with (folder / "metrics.jsonl").open("a") as file:
                line = {"step": step, "time": time.time(), "loss/train/total": 1 / step}
                file.write(json.dumps(line) + "\n")
            for rank in range(RANKS):
                if code := reach("step", rank):
                    return code
            if step % EVERY == 0 or step == STEPS:
                if code := reach("save", 0):
                    return code
                self._save(
                    checkpoints, step, b"b" if again and self.flaw == "other weights" else b"a"
                )
        if again:  # what the real logger does when it goes on: each step once
            last = {}
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                last[json.loads(line)["step"]] = line
            (folder / "metrics.jsonl").write_text("\n".join(last.values()) + "\n")
        return 0

    def _convert(self, out, environment):
        again = out.exists()
        out.mkdir(exist_ok=True)
        if code := self._reach(environment)("shard", 0):
            return code
        (out / "shard").write_text("other" if again and self.flaw == "other shards" else "one")
        return 0

    def _reach(self, environment):
        fault = environment.get(VARIABLE)
        counts = {}
        if fault:
            self.faults.append(fault)

        def reach(point, rank):
            counts[point, rank] = counts.get((point, rank), 0) + 1
            fired = None
            if fault:
                at, nth, action, of = fault.split(":")
                if (at, int(nth), int(of)) == (point, counts[point, rank], rank):
                    fired = action
            moment = Moment(point=point, rank=rank, fired=fired, at=time.monotonic())
            if LOG_VARIABLE in environment:
                with open(environment[LOG_VARIABLE], "a") as file:
                    file.write(json.dumps(attrs.asdict(moment)) + "\n")
            return {None: 0, "kill": 137, "hang": 77, "enospc": 75}.get(fired, 1)

        return reach

    @staticmethod
    def _line(folder, rank, line):
        with (folder / f"samples-rank-{rank:05d}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    @staticmethod
    def _save(checkpoints, step, body):
        folder = checkpoints / folder_name(step)
        folder.mkdir(exist_ok=True)
        # The header's order varies, as it does in real files; only the tensors count.
        names = ["x", "y"] if len(list(checkpoints.parent.parent.iterdir())) % 2 else ["y", "x"]
        header = json.dumps({name: {"dtype": "U8"} for name in names}).encode()
        (folder / "shard.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header + body
        )

    def close(self):
        pass


def drill(folder, commands, *, convert=False, full=True, only=None, seconds=None, tell=None):
    training = TrainingRun(
        spec=Path("spec.yaml"), overrides=("a=b",), root=folder / "runs", name="oracle",
        processes=RANKS, longest=10, longest_hang=5,
    )  # fmt: skip
    conversion = (lambda out: ["convert", str(out)]) if convert else None
    tell = tell or (lambda outcome, done, planned: None)
    return Drill(folder, commands, training, conversion, tell=tell).run(
        full=full, only=only, seconds=seconds
    )


def test_every_moment_is_visited_with_every_fault_until_none_fires(tmp_path):
    commands, told = Pretended(), []
    result = drill(tmp_path, commands, tell=lambda *what: told.append(what))
    assert result.survived
    assert (result.steps, result.planned, len(result.outcomes)) == (5, 13 * 4, 13 * 4)
    assert result.losses == tuple((1 / step).hex() for step in range(1, 6))
    for point, rank, times in (("step", 0, 5), ("step", 1, 5), ("save", 0, 3)):
        for action in ("kill", "eio", "enospc", "hang"):
            expected = [f"{point}:{nth}:{action}:{rank}" for nth in range(1, times + 2)]
            assert [f for f in commands.faults if f in expected] == expected
    assert len(commands.faults) == 13 * 4 + 3 * 4
    assert told[-1][1:] == (52, 52)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["oracle"]


def test_the_plain_command_goes_on(tmp_path):
    commands = Pretended()
    drill(tmp_path, commands, only="save")
    for words in commands.commands:
        name = words[4].removeprefix("run_name=")
        place = [f"run_root={tmp_path}/runs", f"run_name={name}", "autoresume=true"]
        assert words == ["train", "spec.yaml", "a=b", *place]


def test_steps_that_are_made_again_are_counted(tmp_path):
    outcomes = drill(tmp_path, Pretended(), only="step").outcomes
    kills = [o for o in outcomes if (o.fault.action, o.fault.rank) == ("kill", 0)]
    # Killed after step 1 to 5 with checkpoints of steps 2 and 4.
    assert [o.steps_lost for o in kills] == [1, 2, 1, 2, 1]
    assert {o.ended for o in kills} == {"killed by SIGKILL"}
    assert all(0 <= o.seconds_to_detect < 10 and 0 <= o.seconds_to_recover < 10 for o in kills)


@pytest.mark.parametrize(
    ("flaw", "problem"),
    [
        ("forgets", "went on from step 0, though 2 was committed"),
        ("never ends", "exit code 1 after 3 tries"),
        ("other samples", r"rank 0, step 3: samples \(31,\), expected \(30,\)"),
        ("other bits", "rank 0, step 3: loss 0x1.5555555555554p-2, expected 0x1.5555555555555p-2"),
        ("other weights", "shard.safetensors of the last checkpoint differs"),
    ],
)
def test_what_is_lost_is_found(tmp_path, flaw, problem):
    result = drill(tmp_path, Pretended(flaw), only="step")
    assert not result.survived
    found = next(o for o in result.outcomes if (o.fault.action, o.fault.nth) == ("kill", 3))
    assert found.verdict == "lost"
    assert pytest.importorskip("re").match(problem, found.problem)
    assert (tmp_path / "runs" / "fault-00003").is_dir()  # to look at
    assert "LOST" in rows(result.outcomes)[0].cells()[3]
    assert " 0 lost" not in summary(result)


def test_a_conversion_is_compared_byte_by_byte(tmp_path):
    whole = drill(tmp_path, Pretended(), convert=True, only="shard")
    assert whole.survived
    assert [o.fault.action for o in whole.outcomes] == ["kill", "eio", "enospc"]
    (tmp_path / "second").mkdir()
    flawed = drill(tmp_path / "second", Pretended("other shards"), convert=True, only="shard")
    assert [o.verdict for o in flawed.outcomes] == ["lost"] * 3


def test_the_short_drill_has_two_faults_a_point_at_least_and_takes_turns(tmp_path):
    result = drill(tmp_path, Pretended(), convert=True, full=False)
    found = [(o.fault.point, o.fault.action, o.fault.nth, o.fault.rank) for o in result.outcomes]
    assert found == [
        ("save", "kill", 1, 0),
        ("save", "enospc", 2, 0),
        ("step", "kill", 3, 1),
        ("step", "eio", 5, 0),
        ("shard", "kill", 1, 0),
        ("shard", "enospc", 1, 0),
    ]
    assert result.survived


def test_time_is_up(tmp_path):
    result = drill(tmp_path, Pretended(), seconds=1e-9)
    assert (result.outcomes, result.in_time, result.survived) == ((), False, False)
    assert "of 52 planned; then the time was up" in summary(result)


def test_a_pattern_without_a_point_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no point matches; there are save, step"):
        drill(tmp_path, Pretended(), only="nothing.*")


def test_runs_that_differ_by_themselves_prove_nothing(tmp_path):
    class Random(Pretended):
        def _train(self, folder, environment):
            self.flaw = "other weights" if folder.name == "oracle-again" else None
            return super()._train(folder, environment)

        def _save(self, checkpoints, step, body):
            super()._save(checkpoints, step, b"b" if self.flaw else b"a")

    with pytest.raises(RunError, match="two undisturbed runs differ"):
        drill(tmp_path, Random())


def test_a_report_tells_what_its_json_holds(tmp_path):
    result = drill(tmp_path, Pretended(), full=False)
    about = {"about": "a pretended run", "processes": RANKS, "full": False}
    as_json, as_markdown = write(result, tmp_path, **about)
    content = json.loads(as_json.read_text())
    assert content["survived"] is True
    assert content["losses"][0] == (1.0).hex()
    assert as_markdown.read_text() == markdown(content)
    lines = as_markdown.read_text().splitlines()
    assert lines[0].startswith("4 faults in a pretended run on 2 process(es), 5 steps: 4 survived")
    assert lines[4].startswith("| kill -9 | save | 1 | same bits (killed by SIGKILL) | 2 |")
    assert len(lines) == 8
