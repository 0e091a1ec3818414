"""The exceptions a user can meet, and the exit code of each.

    PacelineError
    +-- InputError            2  what the user gave: recipe, flag, path, dataset, checkpoint
    |   +-- RecipeError          a key or value of a recipe, or of --set
    |   +-- DataError            a dataset or sample set that is not what it must be
    |   +-- CheckpointError      a model that is missing, damaged or of another kind
    |   +-- RunDirError          a run directory that cannot be used as asked
    +-- EnvironmentProblem    3  what the machine gave: packages, disk, memory, devices, servers
    |   +-- MissingExtraError    an optional package that this command needs
    |   +-- LoadGenError         a LoadGen wheel of another round, or one that refused its settings
    |   +-- EngineError          an engine that failed, stalled or died during a run
    +-- InterruptedRun        3  Ctrl-C or SIGTERM: finished work is on disk

Every message says what happened and where; `hint` says what to type next. An error that
the user cannot mend is a bug of ours and is left to be a plain exception.
"""

from __future__ import annotations

__all__ = [
    "STOPPED",
    "CheckpointError",
    "DataError",
    "EngineError",
    "EnvironmentProblem",
    "InputError",
    "InterruptedRun",
    "LoadGenError",
    "MissingExtraError",
    "PacelineError",
    "RecipeError",
    "RunDirError",
]


class PacelineError(Exception):
    """Base of all errors that a user can mend.

    `message` is one or two sentences: what, where. `hint` is what to type or do next.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  Next: {self.hint}"


class InputError(PacelineError):
    """What the user gave cannot be used."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, or a --set override, has a key or value that does not exist."""


class DataError(InputError):
    """A dataset is missing, damaged, of the wrong schema or of the wrong length."""


class CheckpointError(InputError):
    """A model is missing, damaged, or not of a kind that the engine can run."""


class RunDirError(InputError):
    """A run directory cannot be created, read or resumed."""


class EnvironmentProblem(PacelineError):
    """The machine lacks something that the command needs."""


class MissingExtraError(EnvironmentProblem):
    """An optional package is not installed."""


class LoadGenError(EnvironmentProblem):
    """The installed LoadGen is another round's, or refused its settings."""


class EngineError(EnvironmentProblem):
    """The engine failed, stalled or died; the run is INCOMPLETE."""


# The first sentence of such an error, whatever was stopped.
STOPPED = "Stopped by Ctrl-C or SIGTERM."


class InterruptedRun(PacelineError):
    """The user or the machine ended the work before it was finished."""
