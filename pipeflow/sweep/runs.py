"""The runs that a sweep's file describes, each with a name, a folder and a whole configuration.

    out: runs/rates                          # folder of the run folders; default: runs/ and the file's name
    config: cifar10/small_glow               # a file beside the sweep's or from the current folder, or `pipeflow configs`
    workers: 1                               # of each run
    options: {data.num_train: 4992}          # over the configuration, in all runs
    grid: {optim.lr: [1e-3, 2e-3]}           # each combination of these is a run
    seeds: [0, 1, 2]                         # of run.seed, each with each combination; default: the configuration's
    arms:                                    # what is compared; config, options, grid and seeds of an arm go over these
      end_to_end: {options: {schedule.mode: end_to_end}}
      heads: {grid: {parts.head: [gaussian, autoregressive]}}

All keys may be left out.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeflow import safe_files
from pipeflow.config import Config, option_names
from pipeflow.config.command_line import put_over
from pipeflow.config.loading import nearest, read_yaml, unknown_option
from pipeflow.config.removed import REMOVED
from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief, in_full

_KEYS = ("out", "config", "workers", "options", "grid", "seeds", "arms")
_ARM_KEYS = ("config", "options", "grid", "seeds")
_OURS = ("run.dir", "run.seed")
"""Options that the sweep sets itself."""
_LONGEST = 200
"""Most bytes of a name without its seed: with that, and with what is put behind it, disks take no more than 255."""


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
    _check_names(path, runs)
    return Sweep(out=folder, workers=workers, runs=runs)


def _check_names(path: Path, runs: tuple[SweepRun, ...]) -> None:
    """Raises ConfigError where two runs have the same name, and so the same folder."""
    named: dict[str, SweepRun] = {}
    for run in runs:
        other = named.setdefault(run.name, run)
        if other is not run:
            why = "a value stands twice in a grid or in seeds"
            if (other.arm, other.options) != (run.arm, run.options):
                why = "names of folders leave out what tells them apart: write an arm or a value otherwise"
            raise ConfigError(f"{path}: two runs are called {run.name!r}: {why}.")


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
    if not arms:
        raise ConfigError(f"{path}: arms: has none: name one, such as arms: {{plain: {{}}}}, or leave arms out.")
    for arm, own in arms.items():
        where = f"arms.{arm}" if arm else "arms"
        own = _mapping(path, where, {} if own is None else own)
        unknown = next((key for key in own if key not in _ARM_KEYS), None)
        if unknown is not None:
            raise ConfigError(f"{path}: {where}: unknown key {brief(unknown)}{nearest(str(unknown), _ARM_KEYS)}.")
        base = _base(f"{path}: {where}" if arm else str(path), path.parent, {**settings, **own})
        fixed = _options(path, f"{where}.options", own)
        grid = {**_grid(path, "grid", settings), **_grid(path, f"{where}.grid", own)}
        grid = {name: values for name, values in grid.items() if name not in fixed}
        mine = next((name for name in overrides if name in grid or name in fixed), None)
        if mine is not None:
            raise ConfigError(
                f"{path}: --{mine} {overrides[mine]}: the sweep has values of its own for it: change the file."
            )
        for *values, seed in itertools.product(*grid.values(), _seeds(path, settings, own, base)):
            in_name = {**dict(zip(grid, values)), "run.seed": seed}
            where = f"{path}: {_name(str(arm), in_name)}"
            config = _config(where, base, {**common, **fixed, **in_name}, workers)
            # The configuration's values, since YAML reads 1e-3 as text.
            sections = config.to_dict()
            differs = {each: sections[each.partition(".")[0]][each.partition(".")[2]] for each in (*fixed, *in_name)}
            name = _name(str(arm), {each: differs[each] for each in in_name})
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(out / name)))
            yield SweepRun(name=name, arm=str(arm), options=differs, config=config)


def _base(where: str, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that all runs begin with. Their figures are the comparison's, unless the configuration asks for more."""
    given = settings.get("config")
    if given is None:
        return {"run": {"figures": False}}
    if not isinstance(given, str):
        raise ConfigError(f"{where}: config: expected the name or the path of a configuration, got {brief(given)}.")
    beside = folder / Path(given).expanduser()
    try:
        base = read_yaml(str(beside if beside.is_file() else given))
    except ConfigError as error:
        sought = "" if beside.is_file() else ", also looked for beside this file"
        raise ConfigError(f"{where}: config {given}{sought}: {error}") from None
    where = f"{where}: config {given}"
    for section, values in base.items():
        for option in values if isinstance(values, dict) else ():
            name = f"{section}.{option}"
            if name not in REMOVED:  # which `Config` accepts with their old default
                _check_option(where, name)
    return {**base, "run": {"figures": False, **_mapping(where, "run", base.get("run", {}))}}


def _config(where: str, base: Mapping[str, Any], options: Mapping[str, Any], workers: int) -> Config:
    try:
        config = Config.from_dict(put_over(base, options))
        config.check_world_size(workers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return config


def _check_option(where: str, name: Any) -> None:
    if name not in option_names():
        raise ConfigError(f"{where}: {unknown_option(brief(name, str), option_names())}")


def _mapping(path: Path | str, where: str, value: Any) -> dict[str, Any]:
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
        _check_option(f"{path}: {where}", name)
    return options


def _grid(path: Path, where: str, settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    grid = _options(path, where, settings)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {where}: {name}: expected a list of values, got {brief(values)}.")
    return grid


def _seeds(path: Path, settings: Mapping[str, Any], own: Mapping[str, Any], base: Mapping[str, Any]) -> list[Any]:
    seeds = own.get("seeds", settings.get("seeds", [base["run"].get("seed", Config().run.seed)]))
    if not isinstance(seeds, list) or not seeds:
        raise ConfigError(f"{path}: seeds: expected a list of whole numbers, got {brief(seeds)}.")
    return seeds


def _name(arm: str, options: Mapping[str, Any]) -> str:
    """A run's name: its arm and its options, the seed last, as the name of a folder."""
    *words, seed = [_word(name, value, options) for name, value in options.items()]
    text = "-".join([arm, *words] if arm else words)
    name = _file_name(text)
    if len(name.encode()) > _LONGEST:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{name.encode()[: _LONGEST - 9].decode(errors='ignore')}-{digest}"
    return f"{name}-{_file_name(seed)}" if name else _file_name(seed)


def _word(name: str, value: Any, options: Mapping[str, Any]) -> str:
    """An option in a run's name: without its section where that tells it apart."""
    short = name.rpartition(".")[2]
    is_alone = sum(each.rpartition(".")[2] == short for each in options) == 1
    return f"{short if is_alone else name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", text)
