"""What a run says of itself: at its start, at each checkpoint, and at its end."""

import sys
from typing import TextIO

from foundry_sdk.events import CheckpointSaved, RunFinished, RunStarted
from foundry_sdk.hookspecs import hookimpl


class Announcer:
    """Prints where the run is, on what, and each thing that was chosen for the user."""

    key = "announcer"

    def __init__(self, stream: TextIO | None = None, *, log_config: bool = False) -> None:
        """Print to ``stream``, by default stderr as it is at that moment: a progress bar takes it.

        Args:
            stream: any text stream.
            log_config: print the whole resolved spec at the start.
        """
        self._stream = stream
        self._log_config = log_config
        self._run: RunStarted | None = None

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Print the run's head."""
        self._run = event
        name = event.resolved_spec.get("model", {}).get("name", "model")
        lines = [
            f"run {event.run_name} in {event.run_dir}",
            f"  {name}, {event.parameters:,} parameters, {event.precision}, on "
            f"{event.world_size} x {event.device_name}",
            f"  {event.global_batch} sequences of {event.sequence_length} tokens a step, "
            f"{event.microbatch} a forward, until {event.max_duration}",
            *(f"  chosen: {option}: {choice}" for option, choice in event.choices.items()),
        ]
        if event.step:
            lines.append(f"  going on from step {event.step}")
        if self._log_config and event.run_dir is not None:
            text = (event.run_dir / "spec.yaml").read_text("utf-8")
            lines += ["*" * 30, "Config:", text.rstrip(), "*" * 30]
        self._print(*lines)

    @hookimpl
    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Print where a checkpoint is."""
        size = f"{event.bytes / 1e6:,.1f} MB in {event.seconds:.1f} s"
        self._print(f"checkpoint {event.path} ({size})")

    @hookimpl
    def run_finished(self, event: RunFinished) -> None:
        """Print how it ended and what can be done next."""
        if self._run is None:
            return
        how = "finished" if event.stopped_by is None else f"stopped ({event.stopped_by})"
        if event.error is not None:
            how = f"failed: {event.error}"
        self._print(
            f"run {self._run.run_name} {how} after {event.step} steps, "
            f"{event.seconds:,.1f} s of training",
            f"  look at it: foundry report {self._run.run_dir}",
        )

    def _print(self, *lines: str) -> None:
        stream = self._stream or sys.stderr
        stream.write("\n".join(lines) + "\n")
        stream.flush()
