"""``tensorboard``, ``wandb``, ``comet`` and ``mlflow``, through Accelerate's trackers.

What a service would gather by itself (command line, source code, working tree, output) stays here:
secrets can't be taken out of it. ``accelerate.tracking`` is imported when a logger is built: a
tracker asks the state that the run's ``Accelerator`` has made which process is the main one.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from foundry_sdk.errors import SpecError
from foundry_sdk.events import RunStarted, TableLogged
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.loggers.tracker import TrackerLogger, markdown, require

_RANK_ZERO: Final = {"rank_zero_only": "loggers run on rank 0 alone"}
# No command line and host, no source code, no git remote and patch, no captured output.
_WANDB_PRIVATE: Final = {
    "x_disable_meta": True,
    "save_code": False,
    "disable_git": True,
    "console": "off",
}
_COMET_PRIVATE: Final = {
    "log_code": False,
    "log_git_patch": False,
    "log_git_metadata": False,
    "log_env_details": False,
    "parse_args": False,
    "auto_output_logging": False,
}
_NO_ARTIFACTS: Final = {"log_artifacts": "checkpoints and other files are not uploaded"}


@attrs.frozen(kw_only=True)
class TensorBoardSpec(LoggerSpec):
    """Writes event files for TensorBoard.

    Attributes:
        log_dir: where to write, below it a folder with the run's name; by default the folder
            ``tensorboard`` in the run's own.
    """

    kind = "tensorboard"
    without_effect = MappingProxyType(
        {**_RANK_ZERO, "flush_interval": "what is logged is flushed at once"}
    )
    log_dir: str | None = None

    def build(self, run: RunStarted) -> TrackerLogger:
        """Return the logger.

        Raises:
            RunError: tensorboard is not installed.
            SpecError: the run has no folder and ``log_dir`` is not set.
        """
        require(self.kind, "tensorboard", "tensorboard")
        from accelerate.tracking import TensorBoardTracker

        if self.log_dir is not None:
            folder, name = Path(self.log_dir), run.run_name
        elif run.run_dir is not None:
            folder, name = run.run_dir, "tensorboard"
        else:
            raise SpecError("loggers.tensorboard.log_dir: set it, as the run has no folder")
        # Events after the step that a resumed run goes on from belong to a lost stretch of it.
        tracker = TensorBoardTracker(name, str(folder), purge_step=run.step + 1)
        tracker.start()

        def log_table(table: TableLogged) -> None:
            tracker.log({table.name: markdown(table)}, step=table.step)

        return TrackerLogger(tracker, key=self.kind, log_table=log_table, nested_config=False)


@attrs.frozen(kw_only=True)
class WandBSpec(LoggerSpec):
    """Logs to Weights & Biases; the key comes from ``wandb login`` or ``WANDB_API_KEY``.

    Attributes:
        project: by default W&B's own, or ``WANDB_PROJECT``.
        group: by default the run's name, so that the attempts of a resumed run are together.
        name: by default the run's name.
        entity: account or team.
        tags: labels of the run.
        init_kwargs: passed on to ``wandb.init``, such as ``{mode: offline}``; its ``settings`` win
            over ours.
    """

    kind = "wandb"
    without_effect = MappingProxyType({**_RANK_ZERO, **_NO_ARTIFACTS})
    project: str | None = None
    group: str | None = None
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()
    init_kwargs: Mapping[str, Any] = attrs.field(factory=dict)

    def build(self, run: RunStarted) -> TrackerLogger:
        """Return the logger, connected.

        Raises:
            RunError: wandb is not installed.
        """
        require(self.kind, "wandb", "wandb")
        from accelerate.tracking import WandBTracker

        arguments: dict[str, Any] = {
            "group": self.group or run.run_name,
            "name": self.name or run.run_name,
            "entity": self.entity,
            "tags": list(self.tags),
        }
        if run.run_dir is not None:
            arguments["dir"] = str(run.run_dir)
        arguments |= self.init_kwargs
        arguments["settings"] = {**_WANDB_PRIVATE, **self.init_kwargs.get("settings", {})}
        # W&B prefers an argument to its environment variables, so None leaves those their say.
        tracker: Any = WandBTracker(self.project, **arguments)
        tracker.start()

        def log_table(table: TableLogged) -> None:
            rows = [list(row) for row in table.rows]
            tracker.log_table(table.name, columns=list(table.columns), data=rows, step=table.step)

        return TrackerLogger(tracker, key=self.kind, log_table=log_table, nested_config=True)


@attrs.frozen(kw_only=True)
class CometSpec(LoggerSpec):
    """Logs to Comet; the key comes from ``COMET_API_KEY`` or Comet's own file.

    Attributes:
        project_name: by default Comet's own, or ``COMET_PROJECT_NAME``.
        workspace: by default Comet's own, or ``COMET_WORKSPACE``.
        name: of the experiment, by default the run's name.
        exp_kwargs: passed on to ``comet_ml.start``, such as ``{online: false}``; its
            ``experiment_config`` is a mapping and wins over ours.
    """

    kind = "comet"
    without_effect = MappingProxyType(
        {**_RANK_ZERO, "log_code": "run.json has the git commit", "log_graph": "not logged"}
    )
    project_name: str | None = None
    workspace: str | None = None
    name: str | None = None
    exp_kwargs: Mapping[str, Any] = attrs.field(factory=dict)

    def build(self, run: RunStarted) -> TrackerLogger:
        """Return the logger, connected.

        Raises:
            RunError: comet_ml is not installed.
        """
        require(self.kind, "comet_ml", "comet_ml")
        import comet_ml
        from accelerate.tracking import CometMLTracker

        arguments: dict[str, Any] = {"workspace": self.workspace, **self.exp_kwargs}
        config = {**_COMET_PRIVATE, **arguments.get("experiment_config", {})}
        arguments["experiment_config"] = comet_ml.ExperimentConfig(**config)
        tracker: Any = CometMLTracker(self.project_name, **arguments)
        tracker.start()
        tracker.tracker.set_name(self.name or run.run_name)

        def log_table(table: TableLogged) -> None:
            tracker.tracker.log_text(markdown(table), step=table.step, metadata={"t": table.name})

        return TrackerLogger(tracker, key=self.kind, log_table=log_table, nested_config=False)


@attrs.frozen(kw_only=True)
class CometMLSpec(CometSpec):
    """Another name of ``comet``."""

    kind = "cometml"


@attrs.frozen(kw_only=True)
class MLflowSpec(LoggerSpec):
    """Logs to MLflow.

    Attributes:
        experiment_name: an experiment, made if there is none of this name.
        run_name: by default the run's name.
        tags: of the run.
        tracking_uri: a server or a folder; by default MLflow's own, or ``MLFLOW_TRACKING_URI``.
    """

    kind = "mlflow"
    without_effect = MappingProxyType(dict(_RANK_ZERO))
    experiment_name: str = "foundry"
    run_name: str | None = None
    tags: Mapping[str, str] = attrs.field(factory=dict)
    tracking_uri: str | None = None

    def build(self, run: RunStarted) -> TrackerLogger:
        """Return the logger, connected.

        Raises:
            RunError: mlflow is not installed.
        """
        require(self.kind, "mlflow", "mlflow")
        import mlflow
        from accelerate.tracking import MLflowTracker

        if self.tracking_uri is not None:
            mlflow.set_tracking_uri(self.tracking_uri)
        tracker = MLflowTracker(
            experiment_name=self.experiment_name,
            run_name=self.run_name or run.run_name,
            tags=dict(self.tags) or None,
        )
        tracker.start()

        def log_table(table: TableLogged) -> None:
            mlflow.log_text(markdown(table), f"{table.name}/step-{table.step}.md")

        return TrackerLogger(tracker, key=self.kind, log_table=log_table, nested_config=False)
