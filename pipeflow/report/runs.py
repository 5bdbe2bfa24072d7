"""Runs to report on: found, read, and given names that tell them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeflow.config import Config
from pipeflow.config.loading import show
from pipeflow.errors import CheckpointError
from pipeflow.output import say
from pipeflow.rundir.reading import SavedRun, read_run
from pipeflow.rundir.records import Change
from pipeflow.safe_files import brief, read_yaml

RUNS = Path("runs")
"""The folder that is looked through where no run is named."""

_MARKS = ("summary.json", "metrics.jsonl")
_DEPTH = 4
_NO_PROPERTY = ("run.dir", "run.resume", "run.figures")
"""Options that are no properties of a run."""


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run and what it was made with."""

    folder: Path
    saved: SavedRun
    options: Mapping[str, str] | None
    """Options as they are written on the command line, by `section.name`; None where config.yaml cannot be read."""
    changes: tuple[Change, ...] = ()
    """Options that changed where it was resumed."""


def find_runs(folder: Path = RUNS) -> list[Path]:
    """The folders of runs in a folder and below it, newest first. Raises CheckpointError where there are none."""
    found = [
        each for depth in range(1, _DEPTH) for each in folder.glob("/".join("*" * depth)) if _last_change(each) > 0
    ]
    if not found:
        raise CheckpointError(
            f"{folder}/ has no runs: name the folders of runs, or go to the folder that holds {folder}/."
        )
    return sorted(found, key=_last_change, reverse=True)


def _last_change(folder: Path) -> float:
    """Time of the last change of a run's results; 0 where there are none."""
    times = [path.stat().st_mtime for name in _MARKS if (path := folder / name).is_file()]
    return max(times, default=0.0)


def read_runs(run_dirs: Sequence[Path]) -> dict[str, ReportedRun]:
    """The runs that can be read, by name; the others are named on standard error.

    Raises CheckpointError where none can.
    """
    read: list[ReportedRun] = []
    for run_dir in dict.fromkeys(run_dirs):
        if len(run_dirs) > 1 and run_dir.is_file():  # `runs/*` has the page itself among the runs
            continue
        try:
            read.append(_read(run_dir))
        except CheckpointError as error:
            if len(run_dirs) == 1:
                raise
            say(f"skipped: {error}")
    if not read:
        raise CheckpointError(f"none of the {len(run_dirs)} folders has a run that can be read.")
    names = [run.saved.summary.name for run in read]
    if len(set(names)) < len(names):  # folders of the same name in different places
        names = [str(run.folder) for run in read]
    return dict(zip(names, read))


def _read(run_dir: Path) -> ReportedRun:
    saved = read_run(run_dir)
    changes = saved.summary.changes or _changes(run_dir)
    return ReportedRun(folder=run_dir, saved=saved, options=_options(run_dir), changes=changes)


def _options(run_dir: Path) -> dict[str, str] | None:
    """Options of the run's config.yaml, as text: of whatever version, and nothing in it is called."""
    settings = _yaml(run_dir / "config.yaml")
    if not isinstance(settings, Mapping):
        return None
    return {
        brief(f"{section}.{name}", str): brief(tuple(value) if isinstance(value, list) else value, show)
        for section, options in settings.items()
        if isinstance(options, Mapping)
        for name, value in options.items()
    }


def _changes(run_dir: Path) -> tuple[Change, ...]:
    """The history that the run has written so far."""
    history = _yaml(run_dir / "config_history.yaml")
    try:
        return tuple(Change.from_json(each) for each in history or ())
    except (ValueError, TypeError) as error:
        say(f"{run_dir / 'config_history.yaml'} is damaged and left out: {error}")
        return ()


def _yaml(path: Path) -> Any:
    """The value of a YAML file, None where it is not there or, with a line that says so, cannot be read."""
    if not path.exists():
        return None
    try:
        return read_yaml(path)
    except (OSError, ValueError) as error:
        say(f"{path} cannot be read and is left out: {error}")
        return None


def differing_options(runs: Mapping[str, ReportedRun]) -> dict[str, dict[str, str]]:
    """Options in which runs differ, by name: their values by run. A run that is older than an option had its default."""
    known = {name: run.options for name, run in runs.items() if run.options is not None}
    defaults = default_options()
    names = dict.fromkeys(option for options in known.values() for option in options)
    found = {
        option: {name: options.get(option, defaults.get(option, "")) for name, options in known.items()}
        for option in names
        if option not in _NO_PROPERTY
    }
    return {option: values for option, values in found.items() if len(set(values.values())) > 1}


def changed_options(run: ReportedRun) -> dict[str, tuple[str, str]]:
    """Options of one run that are not the defaults: their values, and the defaults."""
    defaults = default_options()
    return {
        option: (value, defaults.get(option, ""))
        for option, value in (run.options or {}).items()
        if option not in _NO_PROPERTY and value != defaults.get(option)
    }


def default_options() -> dict[str, str]:
    """All options with their defaults, as text."""
    return {
        f"{section}.{name}": show(tuple(value) if isinstance(value, list) else value)
        for section, options in Config().to_dict().items()
        for name, value in options.items()
    }
