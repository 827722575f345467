"""``generate_callback``: continue some prompts every so often, to see how the model writes."""

from collections.abc import Sequence
from types import MappingProxyType

import attrs
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.errors import SpecError
from foundry_sdk.events import Probe, RunStarted, StepFinished, Table
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.intervals import Interval, duration
from foundry_sdk.units import Duration

_TABLE = "generations"


def _prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(prompts, str):
        raise SpecError(f"generate_callback: prompts is a list of texts, got the text {prompts!r}")
    return tuple(prompts)


@attrs.frozen(kw_only=True)
class GenerateCallbackSpec(CallbackSpec):
    """Logs a table of prompts and what the model makes of them.

    Attributes:
        prompts: texts to continue.
        interval: how often, such as ``"100ba"`` (a plain number: epochs).
        batch_size: prompts at a time; by default all.
        max_new_tokens: at most so many tokens each.
        do_sample: draw tokens; else the most probable one is taken.
        temperature, top_k, top_p, seed: of the draw, so only with ``do_sample``.
    """

    kind = "generate_callback"
    without_effect = MappingProxyType({"use_cache": "it changes the speed alone, never the text"})
    prompts: tuple[str, ...] = attrs.field(converter=_prompts, validator=validators.min_len(1))
    interval: Duration = attrs.field(converter=duration)
    batch_size: int | None = attrs.field(
        default=None, validator=validators.optional(validators.ge(1))
    )
    max_new_tokens: int = attrs.field(default=50, validator=validators.ge(1))
    do_sample: bool = False
    temperature: float = attrs.field(default=1.0, validator=validators.gt(0))
    top_k: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    top_p: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    seed: int = attrs.field(default=0, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        """Refuse options that would have no effect.

        Raises:
            SpecError: an option of sampling is set, but ``do_sample`` is not.
        """
        sampling = {
            "temperature": self.temperature != 1.0,
            "top_k": self.top_k is not None,
            "top_p": self.top_p is not None,
            "seed": self.seed != 0,
        }
        without_effect = [name for name, is_set in sampling.items() if is_set]
        if without_effect and not self.do_sample:
            raise SpecError(
                f"generate_callback: {', '.join(without_effect)} has no effect without "
                "do_sample: true"
            )
        if self.top_p is not None and self.top_p > 1:
            raise SpecError(f"generate_callback: top_p is a share of at most 1, got {self.top_p}")

    def build(self, run: RunStarted) -> "GenerateCallback":
        """Return the callback."""
        interval = Interval(
            self.interval,
            max_duration=run.max_duration,
            total_steps=run.total_steps,
            start_step=run.step,
        )
        return GenerateCallback(self, run.probe, interval)


class GenerateCallback:
    """Generates on every rank, as sharded weights need all of them."""

    key = GenerateCallbackSpec.kind

    def __init__(self, spec: GenerateCallbackSpec, probe: Probe, interval: Interval) -> None:
        """Generate with ``probe`` when ``interval`` fires."""
        self._spec = spec
        self._probe = probe
        self._interval = interval

    @hookimpl
    def step_finished(self, event: StepFinished) -> Table | None:
        """Return one row for each prompt, where due."""
        if not self._interval.fires(event):
            return None
        spec = self._spec
        size = spec.batch_size or len(spec.prompts)
        texts: list[str] = []
        for start in range(0, len(spec.prompts), size):
            texts += self._probe.generate(
                spec.prompts[start : start + size],
                max_new_tokens=spec.max_new_tokens,
                temperature=spec.temperature if spec.do_sample else 0.0,
                top_k=spec.top_k,
                top_p=spec.top_p,
                seed=spec.seed,
            )
        rows = tuple(zip(spec.prompts, texts, strict=True))
        return Table(name=_TABLE, columns=("prompt", "generation"), rows=rows)
