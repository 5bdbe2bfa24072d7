"""The runs that a sweep's file describes, each with a name, a folder and a whole configuration.

    out: runs/rates                          # folder of the run folders; default: runs/ and the file's name
    config: cifar10/small_glow               # a file beside the sweep's or from the current folder, or `pipeflow configs`
    workers: 1                               # of each run
    options: {data.num_train: 4992}          # over the configuration, in all runs
    grid: {optim.lr: [1e-3, 2e-3]}           # each combination of these is a run
    seeds: [0, 1, 2]                         # of run.seed, each with each combination
    arms:                                    # what is compared; config, options, grid and seeds of an arm go over these
      end_to_end: {options: {schedule.mode: end_to_end}}
      heads: {grid: {parts.head: [gaussian, autoregressive]}}

All keys may be left out.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeflow import safe_files
from pipeflow.config import Config, option_names
from pipeflow.config.command_line import put_over
from pipeflow.config.loading import nearest, read_yaml, unknown_option
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief, in_full

_KEYS = ("out", "config", "workers", "options", "grid", "seeds", "arms")
_ARM_KEYS = ("config", "options", "grid", "seeds")
_OURS = ("run.dir", "run.seed")
"""Options that the sweep sets itself."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Also its folder's."""
    arm: str
    """'' in a sweep without arms."""
    options: Mapping[str, Any]
    """Options that differ between the runs: those of the arm, the values of the grid, and the seed."""
    config: Config


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of a file, in its order: the seeds change first, the arms last."""

    out: Path
    workers: int
    runs: tuple[SweepRun, ...]


def read_sweep(path: str | Path, overrides: Mapping[str, str] | None = None, out: str | None = None) -> Sweep:
    """Reads a sweep's file.

    overrides: options over the file's own, for all runs; out: in place of the file's.

    Raises ConfigError for a file that cannot be read, and for the first run that cannot be made.
    """
    path = Path(path).expanduser()
    settings = _read(path)
    unknown = next((key for key in settings if key not in _KEYS), None)
    if unknown is not None:
        raise ConfigError(f"{path}: unknown key {brief(unknown)}{nearest(str(unknown), _KEYS)}.")
    out = settings.get("out", f"runs/{path.stem}") if out is None else out
    if not isinstance(out, str) or not out:
        raise ConfigError(f"{path}: out: expected the path of a folder, got {brief(out)}.")
    workers = settings.get("workers", 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ConfigError(f"{path}: workers: expected a whole number, 1 or more, got {brief(workers)}.")
    folder = Path(out).expanduser()
    runs = tuple(_runs(path, settings, overrides or {}, folder, workers))
    counted = Counter(run.name for run in runs)
    twice = next((name for name, count in counted.items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: two runs are called {twice!r}: a value stands twice in a grid or in seeds.")
    return Sweep(out=folder, workers=workers, runs=runs)


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = safe_files.read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{in_full(path)}: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}.") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected {', '.join(_KEYS)}, found {brief(settings)}.")
    return settings


def _runs(
    path: Path, settings: Mapping[str, Any], overrides: Mapping[str, str], out: Path, workers: int
) -> Iterator[SweepRun]:
    common = {
        **_options(path, "options", settings),
        **_options(Path("command line"), "options", {"options": {**overrides}}),
    }
    arms = _mapping(path, "arms", settings.get("arms", {"": {}}))
    for arm, own in arms.items():
        where = f"arms.{arm}" if arm else "arms"
        own = _mapping(path, where, {} if own is None else own)
        unknown = next((key for key in own if key not in _ARM_KEYS), None)
        if unknown is not None:
            raise ConfigError(f"{path}: {where}: unknown key {brief(unknown)}{nearest(str(unknown), _ARM_KEYS)}.")
        base = _base(path, {**settings, **own})
        fixed = _options(path, f"{where}.options", own)
        grid = {**_grid(path, "grid", settings), **_grid(path, f"{where}.grid", own)}
        grid = {name: values for name, values in grid.items() if name not in fixed}
        mine = next((name for name in overrides if name in grid or name in fixed), None)
        if mine is not None:
            raise ConfigError(
                f"{path}: --{mine} {overrides[mine]}: the sweep has values of its own for it: change the file."
            )
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values))
            for seed in _seeds(path, settings, own):
                differs = {**fixed, **point, "run.seed": seed}
                words = [_word(name, value, grid) for name, value in [*point.items(), ("run.seed", seed)]]
                name = _file_name("-".join([*([str(arm)] if arm else []), *words]))
                config = _config(f"{path}: {name}", base, {**common, **differs, "run.dir": str(out / name)}, workers)
                yield SweepRun(name=name, arm=str(arm), options=differs, config=config)


def _base(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that all runs begin with. Their figures are the comparison's, unless the configuration asks for more."""
    given = settings.get("config")
    if given is None:
        return {"run": {"figures": False}}
    if not isinstance(given, str):
        raise ConfigError(f"{path}: config: expected the name or the path of a configuration, got {brief(given)}.")
    beside = path.parent / Path(given).expanduser()
    base = read_yaml(str(beside if beside.is_file() else given))
    return {**base, "run": {"figures": False, **_mapping(path, f"config {given}: run", base.get("run", {}))}}


def _config(where: str, base: Mapping[str, Any], options: Mapping[str, Any], workers: int) -> Config:
    try:
        config = Config.from_dict(put_over(base, options))
        config.check_world_size(workers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return config


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where}: expected names with values, got {brief(value)}.")
    return value


def _options(path: Path, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options as `section.name: value`, checked by name."""
    options = _mapping(path, where, settings.get(where.rpartition(".")[2], {}))
    for name in options:
        if name in _OURS:
            instead = "out" if name == "run.dir" else "seeds"
            raise ConfigError(f"{path}: {where}: {name} is the sweep's own: set {instead} instead.")
        if name not in option_names():
            raise ConfigError(f"{path}: {where}: {unknown_option(brief(name, str), option_names())}")
    return options


def _grid(path: Path, where: str, settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    grid = _options(path, where, settings)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {where}: {name}: expected a list of values, got {brief(values)}.")
    return grid


def _seeds(path: Path, settings: Mapping[str, Any], own: Mapping[str, Any]) -> list[Any]:
    seeds = own.get("seeds", settings.get("seeds", [0]))
    if not isinstance(seeds, list) or not seeds:
        raise ConfigError(f"{path}: seeds: expected a list of whole numbers, got {brief(seeds)}.")
    return seeds


def _word(name: str, value: Any, grid: Mapping[str, Any]) -> str:
    """An option in a run's name: without its section where that tells it apart."""
    short = name.rpartition(".")[2]
    is_alone = sum(each.rpartition(".")[2] == short for each in [*grid, "run.seed"]) == 1
    return f"{short if is_alone else name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.,=_+-]+", "_", text)
