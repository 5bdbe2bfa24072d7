"""Errors of workers on their way to the user: which of them end a run, and the words for those that Ray raises."""

from collections.abc import Iterable
from typing import Any

from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from pipeflow.errors import PipeflowError, WorkerError


class NoRetryOfMistakes(UserCallback):
    """Ends the run at once at an error that a restart would only meet again.

    Lost workers and unforeseen errors are left to Ray's `FailureConfig`.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the error, which Ray's controller takes for its own and does not retry."""
        error = first_reported(worker_exceptions.values())
        if error is not None and (error.follows_mistake or not isinstance(error, WorkerError)):
            raise error


def first_reported(errors: Iterable[Exception]) -> PipeflowError | None:
    """The first of the workers' errors that is not the echo of another's; None where the user can mend none of them."""
    ours = [error for error in errors if isinstance(error, PipeflowError)]
    return min(ours, key=lambda error: error.reported, default=None)


def in_words(error: TrainingFailedError) -> Exception:
    """The error of pipeflow inside the one that Ray raises, or else Ray's with its traceback."""
    if isinstance(error, ControllerError):
        inner = error.controller_failure
        return inner if isinstance(inner, PipeflowError) else error
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    own = first_reported(failures.values())
    if own is not None:
        return own
    for rank, failure in failures.items():
        if isinstance(failure, RayActorError):
            return WorkerError(
                f"worker {rank} was lost, and no restart is left (--max-restarts): its process or its node has died. "
                f"Start the same command again to resume."
            )
    return error
