"""`pipeflow sweep FILE.yaml`: runs what is missing, and compares what there is."""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeflow.config import Config
from pipeflow.errors import CheckpointError
from pipeflow.output import say
from pipeflow.rundir.reading import read_config, read_summary
from pipeflow.rundir.records import Summary
from pipeflow.rundir.resuming import differing_options, in_words
from pipeflow.rundir.typed_json import dumps
from pipeflow.sweep.pool import Job, Pool, python, room_for
from pipeflow.sweep.runs import Sweep, SweepRun, read_sweep
from pipeflow.units import count_text

_LEARNED = ("model", "parts", "schedule", "optim", "finetune", "precision", "link.dtype")
"""Sections and options that change what is learned from the same images; a run checks by itself that they are the same."""


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
    summaries = _summaries(todo.runs)
    errors = {run.name: error for run in todo.runs if run.name not in summaries and (error := _others_run(run))}
    missing = [run for run in todo.runs if run.name not in {**summaries, **errors}]
    room = room_for(todo.workers, max(1, len(missing)), jobs, _gpus(todo))
    said = f"{count_text(len(todo.runs), 'run')} in {todo.out}: {len(summaries)} there"
    print(f"{said}, {len(room)} at a time" if missing else said, flush=True)
    for name, error in errors.items():
        say(f"{name}: {error}")

    def ended(job: Job, error: str | None) -> None:
        if error is None:
            try:
                summaries[job.name] = _summary(job, todo)
            except (CheckpointError, OSError) as unreadable:
                error = str(unreadable)
        if error is None:
            print(f"{job.name}: done", flush=True)
        else:
            say(f"{job.name}: {error}")
            errors[job.name] = error
        _save(todo, summaries, errors)

    with stoppable():
        try:
            Pool(room).run([_job(run, todo) for run in missing], ended)
        except KeyboardInterrupt:
            say("stopped: runs that had begun are saved, and the same command resumes them")
            raise
        finally:
            _save(todo, {**_summaries(missing), **summaries}, errors)
    there = [todo.out / run.name for run in todo.runs if run.name in summaries]
    if there:
        from pipeflow.report.command import report  # matplotlib takes a second, and a sweep may have nothing to show

        report(there, todo.out)
    print(todo.out / "sweep.json", flush=True)
    return errors


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, unless the process ignores them (nohup).

    Only the first: a terminal that is closed sends two, and the second must not interrupt what the first began.
    """
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which a run that starts at this moment would inherit
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summaries(runs: Sequence[SweepRun]) -> dict[str, Summary]:
    """The results of those whose folder has results of this very configuration, by name."""
    found = {}
    for run in runs:
        # The run itself says what is the matter with a folder that cannot be read.
        with contextlib.suppress(CheckpointError, OSError):
            summary = read_summary(run.config.run.dir)
            if summary is not None and _is_same(run, read_config(run.config.run.dir)):
                found[run.name] = summary
    return found


def _is_same(run: SweepRun, config: Config) -> bool:
    """Whether the configuration is the run's, however its folder's path was written."""
    place = dataclasses.replace(config.run, dir=run.config.run.dir)
    return dataclasses.replace(config, run=place) == run.config


def _others_run(run: SweepRun) -> str | None:
    """The error of a run in whose folder another one is, which would else go on under these options."""
    with contextlib.suppress(CheckpointError, OSError):
        differing = differing_options(read_config(run.config.run.dir).to_dict(), run.config)
        differing = {
            name: values for name, values in differing.items() if name in _LEARNED or name.partition(".")[0] in _LEARNED
        }
        if differing:
            return (
                f"{run.config.run.dir} has a run of other options ({in_words(differing)}): choose another folder for the "
                f"sweep (out, or --out), or move that one away."
            )
    return None


def _summary(job: Job, todo: Sweep) -> Summary:
    """The results of a run whose process ended without an error. Raises CheckpointError where there are none."""
    summary = read_summary(todo.out / job.name)
    if summary is None:
        raise CheckpointError(f"its process ended with exit code 0 before the run had ended, see {job.log}")
    return summary


def _gpus(todo: Sweep) -> int:
    if all(run.config.run.device == "cpu" for run in todo.runs):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _job(run: SweepRun, todo: Sweep) -> Job:
    """The command of a run. Its configuration is a file beside its folder, so that anyone can give the command again."""
    file = todo.out / f"{run.name}.yaml"
    todo.out.mkdir(parents=True, exist_ok=True)
    _write(file, yaml.safe_dump(run.config.to_dict()))
    return Job(
        name=run.name,
        command=python("pipeflow.launch", "--config", str(file), workers=todo.workers),
        log=todo.out / f"{run.name}.log",
        grace_s=run.config.checkpoint.grace_s,
    )


def _save(todo: Sweep, summaries: Mapping[str, Summary], errors: Mapping[str, str]) -> None:
    """Writes sweep.json, with what has come of each run so far."""
    if todo.out.is_dir():
        results = [_result(run, summaries.get(run.name), errors.get(run.name)) for run in todo.runs]
        _write(todo.out / "sweep.json", dumps(results, indent=1) + "\n")


def _result(run: SweepRun, summary: Summary | None, error: str | None) -> Mapping[str, Any]:
    """A run's entry in sweep.json."""
    ended = summary is not None
    entry: dict[str, Any] = {"name": run.name, "arm": run.arm, "options": run.options, "ended": ended}
    if error is not None:
        entry["error"] = error
    if summary is not None:
        entry |= {key: value for key, value in summary.to_json().items() if key not in ("epochs", "name")}
    return entry


def _write(path: Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
