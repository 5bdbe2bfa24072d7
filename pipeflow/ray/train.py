"""pipeflow on a Ray cluster: Ray Train places the workers, restarts them and shows what they report.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python -m pipeflow.ray.train --storage /shared/runs --config two_moons

Ray moves no data: its workers do what torchrun's do (`pipeflow.ray.worker`), and latents go through torch.distributed.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from pipeflow.config import Config, describe_options, load, parse_arguments
from pipeflow.errors import PREEMPTED_EXIT_CODE, ConfigError, PipeflowError, Preempted
from pipeflow.output import stdout_may_break

if TYPE_CHECKING:
    from ray.train import Result


def train_on_ray(
    config: Config,
    *,
    workers: int | None = None,
    placement: Literal["pack", "spread"] = "pack",
    max_restarts: int = 3,
    storage: str | None = None,
    cpus_per_worker: int = 1,
    wait: bool = False,
) -> "Result":
    """Trains on the Ray cluster that this process is connected to, or else on the one that runs.

    The run folder is the same as under torchrun, and the same call again resumes from it. The result's `metrics` are those
    of the whole run, its `metrics_dataframe` has a row for each epoch (`pipeflow.ray.worker.metrics_of`), its
    `return_value` is the summary. Ray's own records are kept in `ray/` beside the run folder.

    Args:
        config: the run. Relative paths of data are looked for in the job's working directory.
        workers: None for one for each replica of each part.
        placement: pack puts workers on as few nodes as can be, spread on as many.
        max_restarts: number of times that lost workers are started anew, on the nodes that are left or have come.
        storage: a folder that all nodes see, for the run folder (`run_folder`).
        cpus_per_worker: CPUs that Ray keeps for each worker, and its threads where OMP_NUM_THREADS is not set.
        wait: whether to wait for nodes that the cluster does not have yet, as one that grows on demand does not.

    Raises:
        ConfigError: there is no cluster, or it has no room for the workers, before anything is started.
        Preempted: the driver was interrupted (Ctrl-C, `ray job stop`), and the run is saved.
        KeyboardInterrupt: it was interrupted again, or before the workers had started.
        PipeflowError: the error that `pipeflow.train` raised in a worker, not retried unless it is a WorkerError.
        ray.train.TrainingFailedError: workers failed with any other error, `max_restarts` times.
    """
    if workers is None:
        if config.num_parts is None:
            raise ConfigError(
                "--workers: parts.num does not tell how many parts there will be: give the number of workers."
            )
        workers = config.num_parts * config.parts.replicas
    config.check_world_size(workers)
    run_dir, device = run_folder(storage, config.run.dir), config.run.device
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(run_dir)))
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # workers stay in the job's working directory

    from pipeflow.ray.cluster import Demand, check_installed, check_room, connect

    check_installed()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from pipeflow.ray.errors import NoRetryOfMistakes, in_words
    from pipeflow.ray.stopping import give, make_wish, run_until_stopped
    from pipeflow.ray.worker import LauncherEnvironment, work

    was_connected = ray.is_initialized()
    if not was_connected:
        connect()
    try:
        use_gpu = device == "cuda" or (device == "auto" and "GPU" in ray.cluster_resources())
        check_room(config, Demand(workers, cpus_per_worker, int(use_gpu)), wait)
        wish = make_wish()
        trainer = TorchTrainer(
            work,
            train_loop_config={"config": config.to_dict(), "wish": wish},
            torch_config=LauncherEnvironment(),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus_per_worker},
                placement_strategy=placement.upper(),
            ),
            run_config=RunConfig(
                name=f"{run_dir.name}-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(run_dir.parent / "ray"),
                failure_config=FailureConfig(max_failures=max_restarts),
                callbacks=[NoRetryOfMistakes()],  # type: ignore[list-item]  # typed for the first version of Ray Train
            ),
        )
        result = run_until_stopped(trainer.fit, ask_to_stop=lambda: give(wish))
    except TrainingFailedError as error:
        raise in_words(error) from error
    finally:
        if not was_connected:
            ray.shutdown()  # ends the workers' output too, so that a message printed next is the last line
    returned = result.return_value  # type: ignore[attr-defined]  # typed for the first version of Ray Train
    if isinstance(returned, Preempted):
        raise returned
    return result


def run_folder(storage: str | None, run_dir: str) -> Path:
    """The run folder, the same for all workers: run.dir in the storage folder, which takes the place of a leading `runs/`.

    Raises ConfigError where it is no full path.
    """
    path = Path(run_dir)
    if storage is not None and path.parts[:1] == ("runs",) and len(path.parts) > 1:
        path = path.relative_to("runs")
    path = Path(storage or "").expanduser() / path
    if not path.is_absolute():
        raise ConfigError(
            f"run.dir: {path} is not the same folder for all workers: give a folder that all nodes see, by its full path "
            f"(--storage /shared/runs)."
        )
    return path


class _Parser(argparse.ArgumentParser):
    """The launcher's own options."""

    def __init__(self) -> None:
        super().__init__(
            usage="python -m pipeflow.ray.train [--storage FOLDER] [--config FILE] [--section.option VALUE ...]",
            description="Trains on the Ray cluster that runs (RAY_ADDRESS, or one on this machine).",
            add_help=False,
            allow_abbrev=False,
        )
        add = self.add_argument
        add("--storage", metavar="FOLDER", help="a folder that all nodes see; takes the place of runs/ in run.dir")
        workers = "workers, a GPU each where the cluster has GPUs  [as many as parts x replicas]"
        add("--workers", metavar="N", type=_count, help=workers)
        add("--placement", choices=("pack", "spread"), default="pack", help="on few nodes, or on many  [pack]")
        restarts = "restarts from the newest checkpoint after a worker or a node was lost  [3]"
        add("--max-restarts", metavar="N", type=int, default=3, help=restarts)
        add("--wait", action="store_true", help="wait for nodes that the cluster does not have yet")
        cpus = "CPUs that Ray keeps for a worker, and threads it computes with  [1]"
        add("--cpus-per-worker", metavar="N", type=_count, default=1, help=cpus)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the driver; its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _Parser()
    if "--help" in arguments or "-h" in arguments:
        with stdout_may_break(lambda error: None):  # `... --help | head` has seen enough
            print(parser.format_help(), describe_options(), sep="\n")
        return 0
    try:
        options, rest = parser.parse_known_args(arguments)
        path, overrides = parse_arguments(rest)
        result = train_on_ray(load(path, overrides), **vars(options))
    except Preempted as notice:
        return _end_with(PREEMPTED_EXIT_CODE, str(notice))
    except PipeflowError as error:
        return _end_with(1, f"error: {error}")
    except KeyboardInterrupt:
        return _end_with(130, "interrupted: ended at once. Start the same command again to resume.")
    print(f"Ray's records: {result.path}")
    return 0


def _end_with(code: int, message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
