"""The front door: a whole run, the same on every worker, from a configuration to a finished run folder.

open    the run folder, images, flow and parts; the checkpoint to go on from, if there is one
start   load the checkpoint, or initialise
then    for each phase: train, evaluate, checkpoint, report; the gather comes before the first end-to-end one
finish  test bits/dim of all images, model, samples, summary
"""

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeflow.config import Config
from pipeflow.data import ImageData
from pipeflow.data.given import GivenData, NoImages, as_image_data
from pipeflow.errors import CheckpointError, ConfigError
from pipeflow.flow import Flow
from pipeflow.output import say, stdout_may_break
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.records import Summary
from pipeflow.training.interruption import Interrupted
from pipeflow.training.run import Run
from pipeflow.workers.world import join_workers

Report = Callable[[dict[str, Any]], None]


def train(
    config: Config,
    flow: Flow | None = None,
    data: GivenData | None = None,
    report: Report | None = None,
    stop: Callable[[], bool] | None = None,
) -> Summary:
    """Trains the run that the configuration describes, or resumes it.

    Each worker that a launcher such as torchrun started calls this. Without a launcher, one process trains all parts.

    Args:
        config: the run.
        flow: a flow of your own in place of `model.name`. With several workers each builds the same one, with the same
            values, under `torch.manual_seed`.
        data: images of your own in place of `data.name`, as `pipeflow.data.given` takes them: an ImageData, or a pair
            (train, test), each an array, a tensor, a pair (images, labels) of these, or a Dataset.
        report: a function that every worker calls after each epoch and its checkpoint, and at the end. On rank 0 it gets
            `{"event": "epoch", **record}` and `{"event": "end", **summary}`, as in `summary.json`; on other workers an
            empty dictionary. It may wait for the other workers' calls.
        stop: a function that is asked before each batch whether to save the run and stop, as after Ctrl-C. It must not
            wait. One worker's true is enough.

    Returns:
        The run's summary.

    Raises:
        PipeflowError: an error that the user can act on. Its `reported` tells whether another worker has printed it.
        Preempted: the run got SIGTERM, SIGINT or SIGHUP and is saved. A process that has not saved within
            `checkpoint.grace_s` is ended.
        KeyboardInterrupt: SIGINT came before there was anything to save, or for the second time.
    """
    config, images = _name_what_is_given(config, flow, data)
    with (
        stdout_may_break(lambda error: _say_that_stdout_broke(error, config)),
        join_workers(config) as world,
        _disk_errors_in_words(config),
        Run(world, config, flow, images) as run,
    ):
        # Before the start there is nothing to save, and signals just end the process: others may be gone already.
        run.start()
        if stop is not None:
            world.notice.is_asked = stop
        with world.notice.listening(config.checkpoint.grace_s, run.folder.checkpoints.last_good):
            try:
                with run.recorder.shown(lambda: run.stages.worker.progress):
                    return _tell(run, report or _tell_nobody)
            except Interrupted as interruption:
                raise run.save_interrupted(interruption.inside) from None


def _tell(run: Run, report: Report) -> Summary:
    """The story of a run that has started."""
    run.evaluate_at_start()
    phase = run.next_phase()
    while phase is not None:
        if not phase.is_local and run.stages.name == "local":
            run.gather()
        run.train(phase)
        run.evaluate(phase)
        # A stop comes before the checkpoint: were it saved, each resume would only meet the stop again.
        following = run.next_phase()
        if phase.checkpoint:
            run.checkpoint(phase.epoch + 1)
        report(run.last_epoch())
        phase = following
    summary = run.finish()
    report({"event": "end", **summary.to_json()} if run.is_main else {})
    return summary


def _tell_nobody(event: dict[str, Any]) -> None:
    """Stands where no report was asked for."""


def _say_that_stdout_broke(error: OSError, config: Config) -> None:
    say(f"standard output: {error.strerror}: the run goes on without it; its log is {config.run.dir}/metrics.jsonl.")


def _name_what_is_given(config: Config, flow: Flow | None, data: GivenData | None) -> tuple[Config, ImageData | None]:
    """The images that were given, and the configuration with `python` for the names of what was given.

    So nobody takes another flow or other data for it. Raises ConfigError where the configuration says `python` and nothing
    was given, or something else than a Flow or images was; DataError where the images cannot be used.
    """
    if flow is not None and not isinstance(flow, Flow):
        kind = type(flow).__name__
        raise ConfigError(f"flow: train(config, flow=...) takes a pipeflow.Flow(layers, shape), not a {kind}.")
    try:
        images = None if data is None else as_image_data(data)
    except NoImages as error:
        raise ConfigError(f"data: train(config, data=...): {error}") from None
    for section, argument, given in (("model", "flow", flow), ("data", "data", images)):
        named = getattr(config, section)
        if given is not None:
            config = dataclasses.replace(config, **{section: dataclasses.replace(named, name="python")})
        elif named.name == "python":
            raise ConfigError(f"{section}.name: python, but train(config, {argument}=...) was given none.")
    return config, images


@contextlib.contextmanager
def _disk_errors_in_words(config: Config) -> Iterator[None]:
    """A full, broken or read-only disk raises CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
        of_the_disk = getattr(error, "errno", None) in numbers
        if not of_the_disk and not any(f"os error {number}" in str(error) for number in numbers):
            raise
        raise CheckpointError(
            f"run.dir: {config.run.dir}: {error}. Free some space, then start the same command again to resume: "
            f"{Checkpoints(Path(config.run.dir), config.checkpoint.keep).last_good()}."
        ) from None
