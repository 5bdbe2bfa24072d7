"""Runs read back from their folders, as curves over what they cost.

Every curve is test bits/dim over a cost, and there are four costs (`AXES`): epochs, seconds, multiply-adds and bytes.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeflow.errors import CheckpointError
from pipeflow.metrics import training_bytes
from pipeflow.records import EPOCH, GATHERED, START, SUMMARY, text, wrong
from pipeflow.training.schedule import FINETUNE
from pipeflow.untrusted import MAX_JSON_BYTES, parse_json, read_bytes

# ---------------------------------------------------------------------------------------------------- reading runs


def read_run(run_dir: str | Path) -> dict:
    """A run's `summary.json`; of a run that has not ended the same, as far as `metrics.jsonl` tells it.

    `"ended"` is added: where it is false, `test_bpd` and `exit_bpd` are those of the last evaluated epoch.

    Raises:
        CheckpointError: the folder is not a run's, or what is in it cannot be read.
    """
    run_dir = Path(run_dir)
    summary, log = run_dir / "summary.json", run_dir / "metrics.jsonl"
    if summary.is_file():
        return {**_parse(_read(summary), SUMMARY, summary), "ended": True}
    if not log.is_file():
        raise CheckpointError(
            f"{run_dir} is not the folder of a run: it has neither summary.json nor metrics.jsonl. "
            f"Give the folder that run.dir named when the run was started."
        )
    # The last line may be half written while the run goes on.
    lines = [line for line in _read(log).splitlines(keepends=True) if line.endswith(b"\n")]
    events = [_parse(line, {"event": text}, f"{log}, line {number}") for number, line in enumerate(lines, start=1)]
    for number, event in enumerate(events, start=1):
        _check(event, _EVENTS.get(event["event"], {}), f"{log}, line {number}")
    if not any(event["event"] == "start" for event in events):
        raise CheckpointError(f"{log} has no start of a run yet: try again when the first epoch has begun.")
    return _summary_so_far(run_dir.resolve().name, events)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_JSON_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(content: bytes, kind: dict, where: str | Path) -> dict:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: this is no JSON ({error}). The file is damaged: take it from a copy, or run again."
        ) from error
    return _check(value, kind, where)


def _check(value: dict, kind: dict, where: str | Path) -> dict:
    found = wrong(value, kind)
    if found is not None:
        raise CheckpointError(
            f"{where}: {found}, which no run writes. The file is damaged: take it from a copy, or run again."
        )
    return value


_EVENTS = {"start": START, "epoch": EPOCH, "gather": GATHERED}


def _summary_so_far(name: str, events: list[dict]) -> dict:
    by_kind = {kind: [event for event in events if event["event"] == kind] for kind in ("start", "epoch", "gather")}
    start, gathers = by_kind["start"][0], by_kind["gather"]
    epochs = [{key: value for key, value in event.items() if key != "event"} for event in by_kind["epoch"]]
    evaluated = [record for record in epochs if record["test_bpd"] is not None]
    exits = [record["exit_bpd"] for record in evaluated if record["exit_bpd"]]
    links: Counter = Counter()
    for record in epochs:
        links.update({(source, target): count for source, target, count in record["bytes"]["latents"]})
    gathered: Counter = Counter()
    for gather in gathers:
        gathered.update(gather["bytes"])
    counts = {
        "eval": sum(record["bytes"]["eval"] for record in epochs),
        "finetune": sum(training_bytes(record) for record in epochs if record["phase"] in FINETUNE),
        "control": sum(record["bytes"]["control"] for record in epochs),
    }
    return {
        "ended": False,
        "name": name,
        "test_bpd": evaluated[-1]["test_bpd"] if evaluated else start["initial_bpd"],
        "exit_bpd": exits[-1] if exits else None,
        "initial_bpd": start["initial_bpd"],
        "epochs": epochs,
        "num_epochs": len(epochs),
        "parts": start["parts"],
        "train_macs": sum(record["macs"] for record in epochs),
        "seconds": {"gather": sum(gather["seconds"] for gather in gathers)},
        "bytes": {
            "forward": [links[link] for link in sorted(links)],
            "backward": [0 for _ in links],
            "gather": {"parameters": 0, "optimizer": 0, **gathered},
            **counts,
            "total": links.total() + gathered.total() + sum(counts.values()),
        },
    }


# ------------------------------------------------------------------------------------------------ what a run costs


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A cost to plot bits/dim over: what an epoch adds to it, and what the gather does."""

    name: str
    label: str
    """`{unit}` stands for the unit that suits the largest value."""
    of_epoch: Callable[[dict], float]
    of_gather: Callable[[dict], float]
    units: tuple[tuple[float, str], ...] = ((1, ""),)
    """Size and name of each unit, ascending."""

    def unit(self, largest: float) -> tuple[float, str]:
        """The largest unit of which `largest` is at least two."""
        return next((unit for unit in reversed(self.units) if largest >= 2 * unit[0]), self.units[0])


BYTE_UNITS = ((1, "bytes"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))

AXES = {
    axis.name: axis
    for axis in (
        Axis(name="epoch", label="epochs", of_epoch=lambda record: 1, of_gather=lambda run: 0),
        Axis(
            name="seconds",
            label="training time with the gather, without evaluation ({unit})",
            of_epoch=lambda record: record["seconds"],
            of_gather=lambda run: run["seconds"]["gather"],
            units=((1, "seconds"), (60, "minutes"), (3600, "hours")),
        ),
        Axis(
            name="macs",
            label="training multiply-adds{unit}",
            of_epoch=lambda record: record["macs"],
            of_gather=lambda run: 0,
            units=((1, ""), *((10.0**power, f" ($10^{{{power}}}$)") for power in range(3, 25, 3))),
        ),
        Axis(
            name="bytes",
            label="sent in training and the gather, without evaluation and control ({unit})",
            of_epoch=training_bytes,
            of_gather=lambda run: sum(run["bytes"]["gather"].values()),
            units=BYTE_UNITS,
        ),
    )
}


def spans(run: dict, axis: Axis) -> list[tuple[dict | None, float, float]]:
    """Where each epoch begins and ends on an axis: `(record, begin, end)`; the gather's record is None."""
    records: list[dict | None] = list(run["epochs"])
    first_finetune = next((i for i, record in enumerate(records) if record["phase"] == "finetune"), len(records))
    records.insert(first_finetune, None)
    result, begin = [], 0.0
    for record in records:
        end = begin + (axis.of_gather(run) if record is None else axis.of_epoch(record))
        result.append((record, begin, end))
        begin = end
    return result


def _number(value: float | str) -> float:
    """A logged number; one that is not finite (the log writes it as a word) leaves a gap in a curve."""
    value = float(value)
    return value if math.isfinite(value) else math.nan


def test_curve(run: dict, axis: Axis) -> tuple[list[float], list[float]]:
    """The whole flow's test bits/dim over an axis, from before training on; epochs without evaluation are left out."""
    points = [(0.0, run["initial_bpd"])]
    points += [
        (end, record["test_bpd"]) for record, _, end in spans(run, axis) if record and record["test_bpd"] is not None
    ]
    return [x for x, _ in points], [_number(bpd) for _, bpd in points]


def exit_curves(run: dict, axis: Axis) -> list[tuple[list[float], list[float]]]:
    """The exit bits/dim of all parts but the last (whose exit is the whole flow), while there are heads."""
    points = [(end, record["exit_bpd"]) for record, _, end in spans(run, axis) if record and record["exit_bpd"]]
    num_parts = max((len(exits) for _, exits in points), default=0)
    return [
        (
            [x for x, exits in points if part < len(exits) - 1],
            [_number(exits[part]) for _, exits in points if part < len(exits) - 1],
        )
        for part in range(num_parts - 1)
    ]


def size(count: float) -> str:
    """Bytes in the unit that suits them: `120 bytes`, `24.6 MB`."""
    factor, unit = next((pair for pair in reversed(BYTE_UNITS) if count >= pair[0]), BYTE_UNITS[0])
    return f"{count:.0f} {unit}" if factor == 1 else f"{count / factor:.3g} {unit}"
