"""When something that comes every so often is due, and how much of a run is done."""

import math
from typing import Final, Literal

from foundry_sdk.errors import SpecError
from foundry_sdk.events import StepFinished
from foundry_sdk.units import Duration, TimeUnit

ClockUnit = Literal["seconds", "minutes", "hours", "days"]
SECONDS_PER: Final[dict[ClockUnit, float]] = {
    "seconds": 1.0,
    "minutes": 60.0,
    "hours": 3600.0,
    "days": 86400.0,
}


def duration(text: str | int | Duration) -> Duration:
    """Read a duration where a spec's field is one (see ``Duration.parse``)."""
    return Duration.parse(text)


class Interval:
    """Fires at the step in which a multiple of ``every`` is reached or passed.

    So it also works where one step jumps over a multiple of tokens or samples. Zero never fires.
    """

    def __init__(
        self, every: Duration, *, max_duration: Duration, total_steps: int | None, start_step: int
    ) -> None:
        """Count from ``start_step``, the steps made before this process.

        Raises:
            SpecError: ``every`` is a share of a run whose length is not known beforehand.
        """
        if every.unit is TimeUnit.DURATION and max_duration.unit is TimeUnit.DURATION:
            raise SpecError(f"{every}: a share of the run needs a max_duration in other units")
        self._every = every
        self._epochs_before = 0 if start_step == 0 else None
        if every.unit is TimeUnit.DURATION:
            self._every = _share(every.value, max_duration, total_steps)

    def fires(self, event: StepFinished) -> bool:
        """Whether it is due at the end of this step; to be asked once for each step."""
        before, now = self._counts(event)
        every = self._every.value
        return every > 0 and math.floor(before / every) != math.floor(now / every)

    def _counts(self, event: StepFinished) -> tuple[float, float]:
        match self._every.unit:
            case TimeUnit.BATCH:
                return event.step - 1, event.step
            case TimeUnit.SAMPLE:
                return event.samples - event.step_samples, event.samples
            case TimeUnit.TOKEN:
                return event.tokens - event.step_tokens, event.tokens
            case TimeUnit.SECOND:
                return event.seconds - event.step_seconds, event.seconds
            case TimeUnit.EPOCH | TimeUnit.DURATION:
                before = self._epochs_before
                if before is None:  # resumed: no batch into an epoch means that one is just over
                    before = event.epoch - int(event.batch_in_epoch == 0)
                self._epochs_before = event.epoch
                return before, event.epoch


def _share(share: float, max_duration: Duration, total_steps: int | None) -> Duration:
    if total_steps is not None:
        return Duration(float(math.ceil(total_steps * share)), TimeUnit.BATCH)
    return Duration(max_duration.value * share, max_duration.unit)


def fraction_done(
    event: StepFinished, *, max_duration: Duration, total_steps: int | None
) -> float | None:
    """Return how much of the run is done, 0 to 1; None where its length is not known."""
    if total_steps is not None:
        return min(1.0, event.step / total_steps) if total_steps else None
    done = {
        TimeUnit.BATCH: event.step,
        TimeUnit.SAMPLE: event.samples,
        TimeUnit.TOKEN: event.tokens,
        TimeUnit.SECOND: event.seconds,
    }.get(max_duration.unit)
    if done is None or max_duration.value <= 0:
        return None
    return min(1.0, done / max_duration.value)
