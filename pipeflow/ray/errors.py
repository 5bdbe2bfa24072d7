"""A worker's error on its way to the user: which errors end a run, and what is said of those that Ray raises."""

from collections.abc import Iterable
from typing import Any

from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from pipeflow.errors import PipeflowError, WorkerError


class NoRetryOfMistakes(UserCallback):
    """Ends the run at once at an error that a restart would only meet again.

    Lost workers, and what pipeflow did not foresee, are left to Ray's `FailureConfig`.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the error, which Ray's controller takes for its own and does not retry."""
        error = first_said(worker_exceptions.values())
        if error is not None and not isinstance(error, WorkerError):
            raise error


def first_said(errors: Iterable[Exception]) -> PipeflowError | None:
    """Of the workers' errors the one that is not another's echo; None where none is for the user to mend."""
    ours = [error for error in errors if isinstance(error, PipeflowError)]
    return min(ours, key=lambda error: error.reported, default=None)


def in_words(error: TrainingFailedError) -> Exception:
    """pipeflow's own error inside the one that Ray raises, or else Ray's with its traceback."""
    if isinstance(error, ControllerError):
        inner = error.controller_failure
        return inner if isinstance(inner, PipeflowError) else error
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    said = first_said(failures.values())
    if said is not None:
        return said
    for rank, failure in failures.items():
        if isinstance(failure, RayActorError):
            return WorkerError(
                f"worker {rank} was lost, and no restart is left (--max-restarts): its process or its node has died. "
                f"Start the same command again to resume."
            )
    return error
