"""The errors a user can act on. Everything else that is raised is a bug of ours and keeps its traceback."""

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL, "try again later": 143 would not tell a run that has saved itself from one that SIGTERM killed."""


class PipeflowError(Exception):
    """An error the user can act on: it says what, where and how to fix it."""

    said = False
    """Whether another worker has told the user already."""


class ConfigError(PipeflowError, ValueError):
    """An option with a value that cannot be."""


class DataError(PipeflowError):
    """Images that are missing, damaged or not what the run needs."""


class CheckpointError(PipeflowError):
    """A checkpoint or a run folder that cannot be read, written or continued."""


class WorkerError(PipeflowError):
    """A worker or a link that is gone, or does not keep to the protocol."""


class TrainingStopped(PipeflowError):
    """The coordinator stopped the run: a loss is not a number any more, or diverges."""


class Preempted(PipeflowError):
    """The run was asked to leave (SIGTERM), and can be resumed."""
