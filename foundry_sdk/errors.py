"""Every error that the SDK raises on purpose, so that a caller can tell them apart.

::

    FoundryError
    ├── SpecError               the spec is wrong: one line per mistake
    │   └── UnknownComponentError   the spec names a component that nobody offers
    ├── PluginError             a plugin, or a combination of plugins, cannot be used
    ├── DataError               a dataset, a document or a sample is not what it should be
    ├── CheckpointError         a checkpoint is missing, broken or of another run
    │   ├── CheckpointWriteError    one could not be written; older ones are untouched
    │   │   └── NoSpaceError            because the disk has no room for it
    │   └── RemoteStoreError        an object store does not answer, or refuses
    ├── ExportError             a model cannot be exported, or its export does not equal it
    └── RunError                a run cannot start or go on
        ├── LaunchError             the processes of a run cannot be laid out as asked for
        ├── WorkerFailedError       a process of the run failed; says which and why
        ├── DeviceMemoryError       a single sequence does not fit the device
        ├── RunFolderError          the run's folder cannot be written, or holds another run
        ├── LockedRunError          another process is using the run folder
        └── NonFiniteError          the loss or a gradient is NaN or infinite

Each message says where, what was found, what was expected, and what to do. ``exit_code`` is what
the command line exits with: 2 where the input must be changed, 1 where the run failed.
"""


class FoundryError(Exception):
    """Base of all errors below; the command line prints its message without a traceback."""

    exit_code: int = 1


class SpecError(FoundryError, ValueError):
    """The document does not describe a run; one line per mistake, each with its dotted path."""

    exit_code = 2


class UnknownComponentError(SpecError, LookupError):
    """The spec names a component that no loaded plugin offers."""


class PluginError(FoundryError):
    """A plugin, or a combination of plugins, cannot be used."""

    exit_code = 2


class DataError(FoundryError, ValueError):
    """A dataset, a document or a sample is not what it should be."""

    exit_code = 2


class CheckpointError(FoundryError):
    """A checkpoint is missing, broken, or belongs to another model or run."""

    exit_code = 2


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written on every rank; those that exist are untouched."""

    exit_code = 1


class NoSpaceError(CheckpointWriteError):
    """The disk has no room for a checkpoint; those that exist are untouched."""

    exit_code = 75  # EX_TEMPFAIL: the same command works once there is room


class RemoteStoreError(CheckpointError):
    """An object store does not answer, or refuses; says nothing about what it holds."""

    exit_code = 1


class ExportError(FoundryError):
    """A model has no equal in the target format, or the exported copy differs from it."""


class RunError(FoundryError):
    """A run cannot start or cannot go on."""


class LaunchError(RunError):
    """The processes of a run cannot be laid out as the options and the environment say."""

    exit_code = 2


class WorkerFailedError(RunError):
    """A process of the run failed, and the others were ended."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        """Take what it said and the exit code it had."""
        super().__init__(message)
        self.exit_code = exit_code


class DeviceMemoryError(RunError):
    """The device has no room for the run, even with one sequence per forward."""

    exit_code = 76  # apart from 75: starting again does not help, a change of the spec does


class RunFolderError(RunError):
    """The run's folder cannot be written, holds another run, or a record that is not readable."""

    exit_code = 2


class LockedRunError(RunError):
    """Another process holds the run folder."""

    exit_code = 2


class NonFiniteError(RunError):
    """The loss or the gradient norm is NaN or infinite; the update was not made."""
