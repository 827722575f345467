"""The drill: an undisturbed run, then the same again and again with a fault each time."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import attrs

from foundry_sdk.callbacks.ledger import LedgerAttempt
from foundry_sdk.drill.commands import Commands, Ended
from foundry_sdk.drill.evidence import RunEvidence, committed, folder_digests
from foundry_sdk.drill.plan import Fault, Series, Subject, count, plan
from foundry_sdk.drill.subjects import Conversion, TrainingRun
from foundry_sdk.errors import RunError
from foundry_sdk.faultpoints import LOG_VARIABLE, VARIABLE, Moment, read_log
from foundry_sdk.launch.watchdog import HUNG_EXIT
from foundry_sdk.loggers.jsonl import METRICS_FILE, read_metrics

_TRIES: Final = 3
"""How often the plain command is given after a fault; once is enough where all is well."""
_SHOWN_LINES: Final = 15

Verdict = Literal["survived", "lost", "not reached"]


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one fault.

    Attributes:
        fault: what was injected.
        verdict: ``lost`` where anything differs from the undisturbed run.
        ended: how the disturbed command ended, in words.
        steps_lost: that had to be made again.
        seconds_to_detect: from the fault to the end of the disturbed command; None where it went
            on.
        seconds_to_recover: from the plain command to the first new step, or to its end.
        problem: what is lost; None where nothing is.
    """

    fault: Fault
    verdict: Verdict
    ended: str
    steps_lost: int = 0
    seconds_to_detect: float | None = None
    seconds_to_recover: float | None = None
    problem: str | None = None


@attrs.frozen(kw_only=True)
class DrillResult:
    """A whole drill.

    Attributes:
        outcomes: in the order of the faults; only those that fired.
        planned: how many there were to be, at least.
        steps: of the undisturbed run.
        losses: its losses by step, in hex.
        seconds: everything together.
        in_time: False where the time was up before the plan's end.
    """

    outcomes: tuple[Outcome, ...]
    planned: int
    steps: int
    losses: tuple[str, ...]
    seconds: float
    in_time: bool

    @property
    def survived(self) -> bool:
        """Whether there was a fault, and nothing was lost by any."""
        return bool(self.outcomes) and all(o.verdict == "survived" for o in self.outcomes)


class Drill:
    """Rehearses faults on one run and, where there is one, one conversion."""

    def __init__(
        self,
        folder: Path,
        commands: Commands,
        training: TrainingRun,
        conversion: Conversion | None,
        *,
        tell: Callable[[Outcome, int, int], None],
    ) -> None:
        """Prepare; nothing runs before ``run``.

        Args:
            folder: for logs and what commands print.
            commands: runs ``foundry``.
            training: what is trained.
            conversion: what is converted; it has been once, without a fault.
            tell: hears of each outcome, how many there are and how many are planned.
        """
        self._folder = folder
        self._commands = commands
        self._training = training
        self._conversion = conversion
        self._tell = tell
        self._number = 0
        self._expected_files: dict[str, str] = {}

    def run(self, *, full: bool, only: str | None, seconds: float | None) -> DrillResult:
        """Rehearse.

        Args:
            full: every moment with every fault.
            only: pattern of the points.
            seconds: after so many no new fault is begun; None = there is no haste.

        Raises:
            RunError: the undisturbed run fails, or two of them differ, or no point matches.
        """
        started = time.monotonic()
        oracle, reached = self._oracle()
        counts: dict[Subject, dict[tuple[str, int], int]] = {"train": count(reached)}
        if self._conversion is not None:
            counts["convert"] = count(self._convert_undisturbed(self._conversion))
        todo = plan(counts, full=full, only=only)
        if not todo:
            points = sorted({point for each in counts.values() for point, _ in each})
            raise RunError(f"--only {only!r}: no point matches; there are {', '.join(points)}")
        outcomes: list[Outcome] = []
        planned = sum(len(series.faults) for series in todo)
        in_time = True
        for fault in self._faults(todo, outcomes):
            if seconds is not None and time.monotonic() - started > seconds:
                in_time = False
                break
            outcomes.append(self._rehearse(fault, oracle))
            fired = sum(outcome.verdict != "not reached" for outcome in outcomes)
            self._tell(outcomes[-1], fired, max(planned, fired))
        return DrillResult(
            outcomes=tuple(o for o in outcomes if o.verdict != "not reached"),
            planned=planned,
            steps=len(oracle.losses),
            losses=tuple(loss.hex() for _, loss in sorted(oracle.losses.items())),
            seconds=time.monotonic() - started,
            in_time=in_time,
        )

    def _faults(self, todo: list[Series], outcomes: list[Outcome]) -> Iterator[Fault]:
        """Yield the plan's faults; of an open-ended series until one does not fire."""
        for series in todo:
            for fault in series.faults:
                yield fault
                if outcomes[-1].verdict == "not reached":
                    break
            else:
                for fault in series.beyond():
                    yield fault
                    if outcomes[-1].verdict == "not reached":
                        break

    def _oracle(self) -> tuple[RunEvidence, list[Moment]]:
        """Run twice undisturbed: without the same bits nothing can be compared."""
        found = []
        for name in ("oracle", "oracle-again"):
            run, log = self._training.named(name), self._folder / f"{name}.points"
            ended = self._command(run.arguments(), run.processes, {LOG_VARIABLE: str(log)}, name)
            if ended.code != 0:
                raise RunError(f"the undisturbed run fails:\n{self._last_lines(name)}")
            found.append((run.evidence(), read_log(log)))
        different = found[1][0].difference(found[0][0])
        if different is not None:
            raise RunError(
                f"two undisturbed runs differ, so nothing can be compared with them: {different}; "
                "set deterministic: true"
            )
        self._training.named("oracle-again").remove()
        return found[0]

    def _convert_undisturbed(self, conversion: Conversion) -> list[Moment]:
        log, out = self._folder / "conversion.points", self._folder / "converted"
        ended = self._command(conversion(out), 1, {LOG_VARIABLE: str(log)}, "conversion")
        if ended.code != 0:
            raise RunError(f"the undisturbed conversion fails:\n{self._last_lines('conversion')}")
        self._expected_files = folder_digests(out)
        return read_log(log)

    def _rehearse(self, fault: Fault, oracle: RunEvidence) -> Outcome:
        self._number += 1
        name = f"fault-{self._number:05d}"
        if fault.subject == "train":
            return self._rehearse_run(fault, self._training.named(name), oracle)
        return self._rehearse_conversion(fault, name)

    def _rehearse_run(self, fault: Fault, run: TrainingRun, oracle: RunEvidence) -> Outcome:
        first, fired_at = self._disturb(fault, run.arguments(), run.processes, run.name)
        if fired_at is None:
            run.remove()
            return Outcome(fault=fault, verdict="not reached", ended="went on")
        reached = max((step.step for a in run.attempts() for step in a.steps), default=0)
        begun, saved = len(run.attempts()), committed(run.checkpoints)
        wall = time.time()
        code, resumed = self._until_it_ends(first, run)
        problem = f"exit code {code} after {_TRIES} tries" if code else None
        lost = 0
        later = run.attempts()[begun:]
        if resumed is not None and later:
            lost = max(0, reached - later[0].start)
            if later[0].start < saved:
                problem = f"went on from step {later[0].start}, though {saved} was committed"
        problem = problem or run.evidence().difference(oracle)
        if problem is None:
            run.remove()
        else:
            problem += f"; see {run.folder} and {self._folder / run.name}.txt"
        return Outcome(
            fault=fault,
            verdict="survived" if problem is None else "lost",
            ended=_in_words(first, went_on=resumed is None),
            steps_lost=lost,
            seconds_to_detect=None if resumed is None else first.ended - fired_at,
            seconds_to_recover=None if resumed is None else _recovery(run, later, wall, resumed),
            problem=problem,
        )

    def _rehearse_conversion(self, fault: Fault, name: str) -> Outcome:
        assert self._conversion is not None  # noqa: S101 - a type guard: it was planned from one
        out = self._folder / name
        first, fired_at = self._disturb(fault, self._conversion(out), 1, name)
        if fired_at is None:
            shutil.rmtree(out)
            return Outcome(fault=fault, verdict="not reached", ended="went on")
        code, last = first.code, None
        for _ in range(_TRIES):
            if code == 0:
                break
            last = self._command(self._conversion(out), 1, {}, name)
            code = last.code
        problem = f"exit code {code} after {_TRIES} tries" if code else None
        if problem is None and folder_digests(out) != self._expected_files:
            problem = f"the shards differ; see {out}"
        if problem is None:
            shutil.rmtree(out)
        return Outcome(
            fault=fault,
            verdict="survived" if problem is None else "lost",
            ended=_in_words(first, went_on=last is None),
            seconds_to_detect=None if last is None else first.ended - fired_at,
            seconds_to_recover=None if last is None else last.ended - last.started,
            problem=problem,
        )

    def _disturb(
        self, fault: Fault, arguments: list[str], processes: int, name: str
    ) -> tuple[Ended, float | None]:
        """Run with the fault; return when it happened too, or None where it did not."""
        log = self._folder / f"{name}.points"
        variables = {VARIABLE: fault.variable(), LOG_VARIABLE: str(log)}
        longest = self._training.longest_hang if fault.action == "hang" else None
        ended = self._command(arguments, processes, variables, name, longest)
        fired = [moment.at for moment in read_log(log) if moment.fired is not None]
        log.unlink(missing_ok=True)
        return ended, fired[0] if fired else None

    def _until_it_ends(self, first: Ended, run: TrainingRun) -> tuple[int, Ended | None]:
        """Give the plain command until it ends well; return the last code and the first try."""
        code, resumed = first.code, None
        for _ in range(_TRIES):
            if code == 0:
                break
            ended = self._command(run.arguments(), run.processes, {}, run.name)
            resumed = resumed or ended
            code = ended.code
        return code, resumed

    def _command(
        self,
        arguments: list[str],
        processes: int,
        variables: dict[str, str],
        name: str,
        longest: float | None = None,
    ) -> Ended:
        return self._commands.run(
            arguments,
            environment=variables,
            output=self._folder / f"{name}.txt",
            seconds=longest or self._training.longest,
            processes=processes,
        )

    def _last_lines(self, name: str) -> str:
        text = (self._folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_SHOWN_LINES:])


def _recovery(run: TrainingRun, later: list[LedgerAttempt], wall: float, resumed: Ended) -> float:
    """Return the seconds to the first step after the restart, or to the end where none is left."""
    if later:
        lines = read_metrics(run.folder / METRICS_FILE)
        times = [line.time for line in lines if line.time >= wall]
        if times:
            return times[0] - wall
    return resumed.ended - resumed.started


def _in_words(ended: Ended, *, went_on: bool) -> str:
    if ended.too_late:
        return "ended by hand: it hung"
    if went_on:
        return "went on"
    if ended.code == HUNG_EXIT:
        return "hung: ended by the launcher"
    if ended.code > 128:
        return f"killed by {signal.Signals(ended.code - 128).name}"
    return f"exit code {ended.code}"
