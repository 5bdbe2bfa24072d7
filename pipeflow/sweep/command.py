"""`pipeflow sweep FILE.yaml`: runs what is missing, and compares what there is."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeflow.errors import CheckpointError
from pipeflow.output import say
from pipeflow.rundir.reading import read_config, read_run
from pipeflow.sweep.pool import Job, Pool, python, room_for
from pipeflow.sweep.runs import Sweep, SweepRun, read_sweep
from pipeflow.units import count_text


def sweep(
    path: str | Path, jobs: int | None = None, overrides: Mapping[str, str] | None = None, out: str | None = None
) -> dict[str, str]:
    """Trains all runs of a sweep's file that have not ended, and writes `sweep.json` and the comparison's figures.

    The same again goes on where it was interrupted. A run that fails is named, and the others go on.

    Args:
        path: the file, see `pipeflow.sweep.runs`.
        jobs: runs at a time; when not given, as many as there are cores or GPUs for.
        overrides: `{"data.path": "cifar10.zip"}`, options over the file's own, for all runs.
        out: folder for the run folders, in place of the file's.

    Returns the errors of the runs that failed, by name. Raises ConfigError for a file that cannot be read.
    """
    todo = read_sweep(path, overrides, out)
    missing = [run for run in todo.runs if not _has_ended(run)]
    room = room_for(todo.workers, max(1, len(missing)), jobs, _gpus(todo))
    said = f"{count_text(len(todo.runs), 'run')} in {todo.out}: {len(todo.runs) - len(missing)} there"
    print(f"{said}, {len(room)} at a time" if missing else said, flush=True)
    errors: dict[str, str] = {}

    def ended(job: Job, error: str | None) -> None:
        if error is None:
            print(f"{job.name}: done", flush=True)
        else:
            say(f"{job.name}: {error}")
            errors[job.name] = error
        _save(todo, errors)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Pool(room).run([_job(run, todo) for run in missing], ended)
    except KeyboardInterrupt:
        say("stopped: runs that had begun are saved, and the same command resumes them")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        _save(todo, errors)
    there = [todo.out / run.name for run in todo.runs if _has_ended(run)]
    if there:
        from pipeflow.report.command import report  # matplotlib takes a second, and a sweep may have nothing to show

        report(there, todo.out)
    print(todo.out / "sweep.json", flush=True)
    return errors


def _has_ended(run: SweepRun) -> bool:
    """Whether its folder has the results of this very configuration."""
    folder = Path(run.config.run.dir)
    try:
        return (folder / "summary.json").exists() and read_config(folder) == run.config
    except CheckpointError:
        return False  # the run itself says what is the matter with its folder


def _gpus(todo: Sweep) -> int:
    if all(run.config.run.device == "cpu" for run in todo.runs):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _job(run: SweepRun, todo: Sweep) -> Job:
    """The command of a run. Its configuration is a file beside its folder, so that anyone can give the command again."""
    file = todo.out / f"{run.name}.yaml"
    todo.out.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(run.config.to_dict()))
    os.replace(partial, file)
    return Job(
        name=run.name,
        command=python("pipeflow.launch", "--config", str(file), workers=todo.workers),
        log=todo.out / f"{run.name}.log",
        grace_s=run.config.checkpoint.grace_s,
    )


def _save(todo: Sweep, errors: Mapping[str, str]) -> None:
    """Writes sweep.json, with what has come of each run so far."""
    if todo.out.is_dir():
        results = [_result(run, todo, errors.get(run.name)) for run in todo.runs]
        (todo.out / "sweep.json").write_text(json.dumps(results, indent=1) + "\n")


def _result(run: SweepRun, todo: Sweep, error: str | None) -> Mapping[str, Any]:
    """A run's entry in sweep.json."""
    entry: dict[str, Any] = {"name": run.name, "arm": run.arm, "options": dict(run.options), "ended": _has_ended(run)}
    if error is not None:
        entry["error"] = error
    if entry["ended"]:
        summary = read_run(todo.out / run.name).summary.to_json()
        entry |= {key: value for key, value in summary.items() if key not in ("epochs", "name")}
    return entry
