"""A learning rate for each part, each searched by itself: Ray Tune with ASHA, part after part.

    python -m pipeflow.ray.tune --config cifar10/small_sequential3 --schedule.finetune_epochs 0

    part 0   rate a ####     rate b ##   rate c ####      one trial a rate; ASHA stops what lags behind
                     |best
    part 1           +--> rate a ##   rate b ####  ...    each goes on from a copy of the best run's checkpoint

A part does not depend on the parts after it, so its rate can be chosen before theirs: 6 rates for 3 parts are 18 trials of
a third of a run, not 216 whole runs. The trials are turns of the sequential schedule.
"""

import dataclasses
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any, TypedDict

from pipeflow.config import Config, describe_options, load, parse_arguments
from pipeflow.errors import ConfigError, PipeflowError, TrainingStopped
from pipeflow.output import stdout_may_break
from pipeflow.ray.cluster import check_installed

RATES = (2e-3, 4e-3, 1e-3, 8e-3, 5e-4, 1.6e-2)
"""Likely rates come first, because ASHA stops a trial that is worse than those before it."""
GRACE_EPOCHS, REDUCTION = 2, 2
"""A trial that is worse than the median of those before it is stopped after 2 epochs, or after 4."""


class Trial(TypedDict):
    """One part's turn at one rate."""

    rate: float
    exit_bpd: list[float]
    """Exit bits/dim of the part after each epoch."""
    dir: str
    """The trial's run folder."""


class _TurnEnded(Exception):
    """The part has had its epochs."""


def start_ray() -> None:
    """Starts Ray for this process alone, one trial at a time, on 127.0.0.1 only."""
    # Read when ray is imported; without it ray listens on all networks.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of data are those of the command
    # With its own handler Tune makes an interrupted search look like one that has ended.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False)


def _stop_ray() -> None:
    """Ends the trials' output too, so that a message printed next is the last line."""
    import ray

    ray.shutdown()


def search(config: Config, rates: tuple[float, ...] = RATES) -> list[list[Trial]]:
    """The trials of each part, the best one first.

    The best trial has the lowest exit bits/dim of those that had all of the part's epochs. Runs are kept in `run.dir`, one
    folder a trial.

    Raises:
        ConfigError: the parts have no turns of one length, or there is something in `run.dir`: trials do not resume.
        PipeflowError: the first error of a trial that the user can mend.
        KeyboardInterrupt: the search was interrupted.
    """
    _check(config)
    num_parts, _ = _turns(config)
    found: list[list[Trial]] = []
    for part in range(num_parts):
        trials = _search_part(config, part, rates, best=[trials[0] for trials in found])
        found.append(sorted(trials, key=lambda trial: (-len(trial["exit_bpd"]), trial["exit_bpd"][-1])))
        best = found[part][0]
        print(f"part {part}: rate {best['rate']:g}, exit {best['exit_bpd'][-1]:.3f} bits/dim", flush=True)
    return found


def _check(config: Config) -> None:
    """Raises what `search` raises before its first trial."""
    _turns(config)
    folder = Path(config.run.dir)
    # A search that failed at its first trial, as when there are no images, leaves Ray's own records only.
    if folder.is_dir() and any(path.name != "ray" for path in folder.iterdir()):
        raise ConfigError(
            f"run.dir: {folder} has a run or a search in it, and a search starts anew: give another folder."
        )


def _turns(config: Config) -> tuple[int, int]:
    """Number of parts, and epochs of each one's turn."""
    num_parts, epochs = config.num_parts or 0, config.num_local_epochs
    if config.schedule.mode != "sequential" or not num_parts or epochs % num_parts:
        raise ConfigError(
            f"schedule.local_epochs: a turn for each of {num_parts} parts needs schedule.mode sequential and a "
            f"multiple of {num_parts}, got {config.schedule.mode} and {epochs}."
        )
    return num_parts, epochs // num_parts


def _search_part(config: Config, part: int, rates: tuple[float, ...], best: list[Trial]) -> list[Trial]:
    """All trials of one part. best: the best trials of the parts before it."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    asha = ASHAScheduler(max_t=_turns(config)[1], grace_period=GRACE_EPOCHS, reduction_factor=REDUCTION)
    settings = {
        "rate": tune.grid_search(list(rates)),
        "part": part,
        "before": [trial["rate"] for trial in best],
        "start": best[-1]["dir"] if best else None,
        "config": config.to_dict(),
    }
    tuner = tune.Tuner(
        _trial,
        param_space=settings,
        tune_config=tune.TuneConfig(metric="exit_bpd", mode="min", scheduler=asha, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"part{part}",
            storage_path=str(Path(config.run.dir, "ray")),
            failure_config=tune.FailureConfig(fail_fast=True),
            verbose=0,
        ),
    )
    results = tuner.fit()
    for error in results.errors:
        raise in_words(error)
    trials: list[Trial] = []
    for result in results:  # type: ignore[attr-defined]  # has __len__ and __getitem__ only
        exits = list(result.metrics_dataframe["exit_bpd"])
        trials.append({"rate": result.config["rate"], "exit_bpd": exits, "dir": result.metrics["dir"]})
    return trials


def in_words(error: Exception) -> Exception:
    """The error of pipeflow inside the one that Ray raises for a trial, or else Ray's with its traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, PipeflowError) else error


def _trial(settings: dict[str, Any]) -> None:
    """Trains one part for its turn at one rate, starting from the best turn of the part before."""
    from ray import tune

    from pipeflow.training.train import train

    part, rate = settings["part"], settings["rate"]
    config = Config.from_dict(settings["config"])
    num_parts, turn = _turns(config)
    run_dir = Path(config.run.dir, f"part{part}_lr{rate:g}")
    if settings["start"] is not None:
        shutil.copytree(settings["start"], run_dir)
    rates = (settings["before"] + [rate] * num_parts)[:num_parts]
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=str(run_dir)),
        optim=dataclasses.replace(config.optim, part_lr=tuple(rates)),
    )

    def report(event: dict[str, Any]) -> None:
        tune.report({"exit_bpd": event["exit_bpd"][part], "dir": str(run_dir)})
        if event["epoch"] + 1 == (part + 1) * turn:
            raise _TurnEnded

    try:
        train(config, report=report)
    except _TurnEnded:
        pass
    except TrainingStopped:
        tune.report({"exit_bpd": math.inf, "dir": str(run_dir)})


def main() -> int:
    """Searches as the command line says and prints all trials; the exit code."""
    if "--help" in sys.argv or "-h" in sys.argv:
        with stdout_may_break(lambda error: None):  # `... --help | head` has seen enough
            print(__doc__, describe_options(), sep="\n")
        return 0
    try:
        config = load(*parse_arguments(sys.argv[1:]))
        run_dir = str(Path(config.run.dir).resolve())
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=run_dir))
        _check(config)
        check_installed()
        start_ray()
        try:
            found = search(config)
        finally:
            _stop_ray()
    except PipeflowError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted: a search does not resume, give the next one another --run.dir.", file=sys.stderr, flush=True
        )
        return 130
    for part, trials in enumerate(found):
        for trial in trials:
            print(f"part {part}  rate {trial['rate']:<7g} exits {[round(each, 3) for each in trial['exit_bpd']]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
