"""A learning rate for each part, each searched by itself: Ray Tune with ASHA, part after part.

    python -m launch.tune_part_lr --config configs/cifar10/small_sequential3.yaml --schedule.finetune_epochs 0

    part 0   rate a ####     rate b ##   rate c ####      one trial a rate; ASHA stops what lags behind
                     |best
    part 1           +--> rate a ##   rate b ####  ...    each goes on from a copy of the best run's checkpoint

What a part learns does not depend on the parts after it, so that its rate can be chosen before theirs are: 6 rates for 3
parts are 18 trials of a third of a run, not 216 whole runs. The trials are turns of the sequential schedule.
"""

import dataclasses
import math
import os
import shutil
import sys
from pathlib import Path

from pipeflow.config import Config, load, parse_arguments
from pipeflow.errors import ConfigError, TrainingStopped

RATES = (2e-3, 4e-3, 1e-3, 8e-3, 5e-4, 1.6e-2)
"""Likely ones first: ASHA stops a trial that is worse than those before it."""
GRACE_EPOCHS, REDUCTION = 2, 2
"""What is worse than the median of the trials before is stopped after 2 epochs, or after 4."""


class _TurnEnded(Exception):
    """The part has had its epochs."""


def start_ray() -> None:
    """A Ray for this process alone, one trial at a time, on 127.0.0.1 only."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
        "0"  # is read when ray is imported: it listens on all networks else
    )
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False)


def search(config: Config, rates: tuple[float, ...] = RATES) -> list[list[dict]]:
    """By part, the trials: `{"rate": 1e-3, "exit_bpd": [4.9, ...] by epoch, "dir": ...}`, the best one first.

    The best is the one with the lowest exit bits/dim of those that had all of the part's epochs. Runs are kept in
    `run.dir`, one folder a trial.
    """
    _check(config)
    found: list[list[dict]] = []
    for part in range(config.num_parts):
        best = [trials[0] for trials in found]
        trials = _search_part(config, part, rates, best)
        found.append(sorted(trials, key=lambda trial: (-len(trial["exit_bpd"]), trial["exit_bpd"][-1])))
        print(
            f"part {part}: rate {found[part][0]['rate']:g}, exit {found[part][0]['exit_bpd'][-1]:.3f} bits/dim",
            flush=True,
        )
    return found


def _check(config: Config) -> None:
    if config.schedule.mode != "sequential" or config.num_local_epochs % config.num_parts:
        raise ConfigError(
            f"schedule.local_epochs: a turn for each of {config.num_parts} parts needs schedule.mode sequential and a "
            f"multiple of {config.num_parts}, got {config.schedule.mode} and {config.num_local_epochs}."
        )


def _search_part(config: Config, part: int, rates: tuple[float, ...], best: list[dict]) -> list[dict]:
    """All trials of one part. best: those of the parts before it."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    turn = config.num_local_epochs // config.num_parts
    asha = ASHAScheduler(max_t=turn, grace_period=GRACE_EPOCHS, reduction_factor=REDUCTION)
    tuner = tune.Tuner(
        _trial,
        param_space={
            "rate": tune.grid_search(list(rates)),
            "part": part,
            "before": [trial["rate"] for trial in best],
            "start": best[-1]["dir"] if best else None,
            "config": config.to_dict(),
        },
        tune_config=tune.TuneConfig(metric="exit_bpd", mode="min", scheduler=asha, reuse_actors=True),
        run_config=tune.RunConfig(name=f"part{part}", storage_path=str(Path(config.run.dir, "ray")), verbose=0),
    )
    return [
        {
            "rate": result.config["rate"],
            "exit_bpd": list(result.metrics_dataframe["exit_bpd"]),
            "dir": result.metrics["dir"],
        }
        for result in tuner.fit()
    ]


def _trial(settings: dict) -> None:
    """One part's turn at one rate, on from the best turn of the part before."""
    from ray import tune

    from pipeflow.training.run import train

    part, rate = settings["part"], settings["rate"]
    config = Config.from_dict(settings["config"])
    turn = config.num_local_epochs // config.num_parts
    run_dir = Path(config.run.dir, f"part{part}_lr{rate:g}")
    if settings["start"] is not None:
        shutil.copytree(settings["start"], run_dir)
    rates = (settings["before"] + [rate] * config.num_parts)[: config.num_parts]
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=str(run_dir)),
        optim=dataclasses.replace(config.optim, part_lr=tuple(rates)),
    )

    def report(event: dict) -> None:
        tune.report({"exit_bpd": event["exit_bpd"][part], "dir": str(run_dir)})
        if event["epoch"] + 1 == (part + 1) * turn:
            raise _TurnEnded

    try:
        train(config, report=report)
    except _TurnEnded:
        pass
    except TrainingStopped:
        tune.report({"exit_bpd": math.inf, "dir": str(run_dir)})


def main() -> None:
    """Searches as the command line says and prints all trials."""
    path, overrides = parse_arguments(sys.argv[1:])
    config = load(path, overrides)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(Path(config.run.dir).resolve())))
    start_ray()
    for part, trials in enumerate(search(config)):
        for trial in trials:
            print(f"part {part}  rate {trial['rate']:<7g} exits {[round(each, 3) for each in trial['exit_bpd']]}")


if __name__ == "__main__":
    main()
