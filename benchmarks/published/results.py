"""Results of the runs, line by line of the table, and the verdicts that follow from them.

    results.json   the settings, and of each line its numbers and the machine they are from
    curves.json    of each row its epochs' records, as far as figures need them

Lines that were measured before, on this machine or another, stay until the runs at hand have come further.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import same_machine
from benchmarks.published.rows import ROWS, Line, Row, Settings, stop_name
from benchmarks.published.slices import kept_summary
from pipeflow.errors import CheckpointError
from pipeflow.report.curves import AXES, spans
from pipeflow.rundir.reading import SavedRun, read_run
from pipeflow.rundir.records import Summary

WITHIN = 0.02
"""Bits/dim by which a by-parts row may end above its row end to end and count as reproduced."""
RECORD = ("epoch", "phase", "trained", "test_bpd", "exit_bpd", "train_loss", "seconds", "macs")


class SettingsDiffer(Exception):
    """Earlier measurements do not belong into one table with those that are asked for now."""


def check_settings(file: Path, settings: Settings) -> None:
    """Writes the settings into a file, or raises SettingsDiffer where it has others."""
    if file.is_file():
        before = json.loads(file.read_text())["settings"]
        if before != settings.to_json():
            raise SettingsDiffer(
                f"{file} is of other settings ({before}) than these ({settings.to_json()}): choose other folders with "
                f"--runs and --out, or move it away."
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": settings.to_json()}, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------- reading the runs


def measure(lines: Sequence[Line], settings: Settings, runs: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """The numbers of every line that has begun, and the curve of every row, by name."""
    notes = [json.loads(note) for note in _lines_of(runs / "slices.jsonl")]
    measured, curves = {}, {}
    for line in lines:
        saved = _run_of(line, runs)
        if saved is None:
            continue
        run, ended = saved.summary, saved.ended
        of_row = [note for note in notes if note["row"] == line.row.name]
        measured[line.name] = {
            "num_epochs": run.num_epochs,
            "ended": ended,
            "test_bpd": run.test_bpd,
            "num_images": None if ended else settings.config(line.row).eval.num_images,
            "exit_bpd": run.exit_bpd,
            "macs": run.train_macs,
            "seconds": spans(run, AXES["seconds"])[-1][2],
            "cpu_seconds": sum(sum(record.cpu_seconds or ()) for record in run.epochs),
            "forward": run.bytes.forward,
            "jobs": max(note["jobs"] for note in of_row),
            "threads": of_row[-1]["threads"],
            "machine": of_row[-1]["machine"],
        }
        if not line.is_control:
            curves[line.name] = _curve(saved)
    return measured, curves


def _lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _run_of(line: Line, runs: Path) -> SavedRun | None:
    """The run at the line's end, or of a row as far as it has come."""
    folder = runs / line.row.name
    kept = kept_summary(folder, line.epochs)
    if kept.is_file():
        return SavedRun(summary=Summary.from_json(json.loads(kept.read_text())), ended=True)
    if line.is_control:
        return None
    try:
        return SavedRun(summary=read_run(folder).summary, ended=False)
    except CheckpointError:  # not begun, or not initialised yet
        return None


def _curve(saved: SavedRun) -> dict:
    """The fields of a run that `pipeflow.report.figures.comparison` reads."""
    run = saved.summary.to_json()
    records = [
        {
            **{key: record[key] for key in RECORD},
            "bytes": {key: record["bytes"][key] for key in ("latents", "gradients")},
        }
        for record in run["epochs"]
    ]
    return {
        "name": run["name"],
        "ended": saved.ended,
        **{key: run[key] for key in ("num_epochs", "test_bpd", "initial_bpd")},
        "seconds": {"gather": run["seconds"]["gather"]},
        "bytes": {"gather": run["bytes"]["gather"]},
        "epochs": records,
    }


def run_of_curve(curve: Mapping) -> SavedRun:
    """The run that a curve is of. Counts that a curve leaves out are 0 in it."""
    epochs = [
        {"steps": 0, "images": 0, **record, "bytes": {"eval": 0, "control": 0, **record["bytes"]}}
        for record in curve["epochs"]
    ]
    sent = {"forward": [], "backward": [], "finetune": 0, "total": 0, **curve["bytes"]}
    run = {"exit_bpd": None, "train_macs": 0, "parts": [], **curve, "epochs": epochs, "bytes": sent}
    return SavedRun(summary=Summary.from_json(run), ended=curve["ended"])


def merge(before: Mapping[str, dict], now: Mapping[str, dict]) -> dict[str, dict]:
    """Keeps of each line, or curve, the one that has come further; the new one where both have come as far."""
    merged = dict(before)
    for name, line in now.items():
        old = before.get(name)
        if old is None or _progress(line) >= _progress(old):
            merged[name] = line
    return merged


def _progress(line: dict) -> tuple[bool, int]:
    return line["ended"], line["num_epochs"]


# ------------------------------------------------------------------------------------------------ what follows


def on_gpu(line: dict) -> bool:
    """Whether the line was trained on a GPU, where the seconds of its clock count."""
    return line["machine"]["gpu"] != "none"


def time_of(line: dict) -> float:
    """Seconds of training: on the CPU of its cores, which others that run beside it do not stretch."""
    return line["seconds"] if on_gpu(line) else line["cpu_seconds"]


def rival_of(row: Row, measured: Mapping[str, dict]) -> dict | None:
    """The row end to end that this one is compared with, once it has ended."""
    return _ended(measured.get(row.rival or row.name))


def equal_of(row: Row, measured: Mapping[str, dict], equal: Mapping[str, int], total: int) -> dict | None:
    """The stop end to end that has taken as many multiply-adds, once it is there."""
    return _ended(measured.get(stop_name(row.rival, equal[row.name], total))) if row.rival else None


def _ended(line: dict | None) -> dict | None:
    return line if line is not None and line["ended"] else None


def ratio(line: dict, rival: dict | None, key: str) -> float | None:
    """Ratio of multiply-adds (`macs`) or `time`; of times only where both are from one machine and number of threads."""
    if rival is None or not line["ended"]:
        return None
    if key != "time":
        return line[key] / rival[key]
    if not same_machine(line["machine"], rival["machine"]) or line["threads"] != rival["threads"]:
        return None
    return time_of(line) / time_of(rival)


def difference(line: dict, other: dict | None) -> float | None:
    """Difference in bits/dim, on all test images."""
    return line["test_bpd"] - other["test_bpd"] if other is not None and line["ended"] else None


def verdicts(measured: Mapping[str, dict], equal: Mapping[str, int], total: int) -> dict[str, list[str]]:
    """Whether each published by-parts row is reproduced, and whether it beats equal multiply-adds."""
    answers: dict[str, list[str]] = {"reproduced": [], "beats": []}
    for row in ROWS.values():
        if row.time_bound is None:
            continue
        line = measured.get(row.name)
        apart = line and difference(line, rival_of(row, measured))
        time = line and ratio(line, rival_of(row, measured), "time")
        answers["reproduced"].append(f"{row.name}: {_reproduced(apart, time, row.time_bound)}")
        apart = line and difference(line, equal_of(row, measured, equal, total))
        answers["beats"].append(f"{row.name}, against {equal[row.name]} epochs end to end: {_beats(apart)}")
    return answers


def _reproduced(apart: float | None, time: float | None, bound: float) -> str:
    if apart is None:
        return "not measured"
    facts = f"{apart:+.3f} bits/dim against end to end (at most {WITHIN:+.2f})"
    if time is None:
        return f"{'open' if apart <= WITHIN else 'no'}: {facts}, time not measured on one machine"
    answer = "yes" if apart <= WITHIN and time <= bound else "no"
    return f"{answer}: {facts}, {time:.2f} of its time (at most {bound})"


def _beats(apart: float | None) -> str:
    if apart is None:
        return "not measured"
    return f"yes, by {-apart:.3f} bits/dim" if apart < 0 else f"no, behind by {apart:.3f} bits/dim"
