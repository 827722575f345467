"""What ``Pretrainer`` and ``Finetuner`` have in common: a spec, its plan, a run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from foundry_sdk.specs.run import RunSpec

if TYPE_CHECKING:
    from foundry_sdk.plugin.catalog import Catalog
    from foundry_sdk.training.plan import RunPlan
    from foundry_sdk.training.run import RunResult

S = TypeVar("S", bound=RunSpec)


class Trainer(Generic[S]):
    """Trains what its spec says.

    Attributes:
        spec_class: what YAML is read as.
        spec: what is trained.
        notices: one line per key of the file that is accepted and has no effect here.
    """

    spec_class: ClassVar[type[Any]]

    def __init__(self, spec: S) -> None:
        """Take a spec that was made in Python.

        Args:
            spec: checked in itself when it was made.
        """
        self.spec = spec
        self.notices: tuple[str, ...] = ()

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        catalog: "Catalog | None" = None,
    ) -> Self:
        """Read a YAML file with LLM Foundry's key names.

        Args:
            path: of the file.
            overrides: changes such as ``optimizer.lr=3e-4``.
            catalog: what the file may name; by default the built-ins and installed plugins.

        Raises:
            SpecError: with every mistake of the file.
        """
        from foundry_sdk.specs.structure import read

        spec, notices = read(path, cls.spec_class, overrides, catalog=catalog)
        made = cls(spec)
        made.notices = notices
        return made

    def plan(self, world_size: int = 1) -> "RunPlan":
        """Return the run's arithmetic on ``world_size`` ranks: no GPU, no data, no download."""
        from foundry_sdk.training.plan import plan_run

        return plan_run(self.spec, world_size=world_size)

    def check(self) -> None:
        """Look on this machine for what the run needs, before any device, model or network.

        ``foundry train`` does, before it starts processes, and so does ``fit`` in a run of one.

        Raises:
            LaunchError: an installed package is too old.
            DataError: data is missing or broken.
            CheckpointError: ``load_path`` is missing.
        """
        from foundry_sdk.errors import CheckpointError, DataError, LaunchError
        from foundry_sdk.runs.machine import outdated

        spec = self.spec
        if old := outdated():
            raise LaunchError("\n".join(old))
        loaders = {f"eval_loader {e.label or ''}".rstrip(): e.loader for e in spec.eval_loader}
        for name, loader in {"train_loader": spec.train_loader, **loaders}.items():
            try:
                loader.check()
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        start = spec.load_path
        if start is not None and "://" not in start and not Path(start).exists():
            raise CheckpointError(
                f"load_path: there is no {start!r} (working directory {Path.cwd()}); give a "
                "run's folder, its checkpoints, or one of them"
            )

    def fit(self) -> "RunResult":
        """Train; every rank calls this and gets the same result.

        Raises:
            SpecError, DataError: before any work, where spec or data are wrong.
            RunError: the run could not go on; its folder says how far it came.
        """
        from foundry_sdk.training.run import train

        if os.environ.get("WORLD_SIZE", "1") == "1":  # else who started the ranks has looked
            self.check()
        return train(self.spec)
