"""Errors that a user can act on. Any other exception is a bug in pipeflow and keeps its traceback."""

import textwrap

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL, "try again later". 143 would not distinguish a run that saved itself from one that SIGTERM killed."""


class PipeflowError(Exception):
    """An error that the user can act on: the message names the option or file, its value and the fix."""

    reported = False
    """Whether another worker has already shown the error to the user."""
    follows_mistake = False
    """Whether that worker's error was a mistake, which a restart would only meet again."""


class ConfigError(PipeflowError, ValueError):
    """An option has a value that is not allowed."""


class DataError(PipeflowError):
    """Images are missing, damaged or not those that the run needs."""


class CheckpointError(PipeflowError):
    """A checkpoint or a run folder cannot be read, written or continued."""


class WorkerError(PipeflowError):
    """A worker or a link is gone, or breaks the protocol."""


class TrainingStopped(PipeflowError):
    """The coordinator stopped the run because a loss is not finite or diverges."""

    def __init__(self, message: str, advice: str | None = None):
        """advice: what helps, where it is not a lower rate."""
        super().__init__(message)
        self.advice = advice


class Preempted(PipeflowError):
    """The run was asked to stop (SIGTERM, SIGINT or SIGHUP), and can be resumed."""


class NoInverse(PipeflowError, TypeError):
    """A layer has no inverse, or a prior no samples. Sampling and decoding need them, training does not."""


def first_line(error: BaseException) -> str:
    """The first line of a C++ error, without the place in torch where it was thrown."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return textwrap.shorten(text.split("] ", 1)[-1], 160, placeholder=" ...")
