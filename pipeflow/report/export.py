"""Runs for programs: everything as JSON, or the epochs as rows of CSV."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from pipeflow.report.runs import ReportedRun
from pipeflow.rundir.typed_json import dumps

_BY_PART = ("train_loss", "rate", "gradient_norm", "updates")
_LISTS = ("exit_bpd", "idle", "cpu_seconds")


def as_json(runs: Mapping[str, ReportedRun]) -> str:
    """A list of runs, each with the content of its summary.json, its folder, its options, and whether it has ended."""
    entries = [
        {
            **run.saved.summary.to_json(),
            "name": name,
            "folder": str(run.folder),
            "ended": run.saved.ended,
            "options": None if run.options is None else dict(run.options),
        }
        for name, run in runs.items()
    ]
    return dumps(entries, indent=1) + "\n"


def as_csv(runs: Mapping[str, ReportedRun]) -> str:
    """A row for each epoch of each run; values of parts, workers and links are columns such as `train_loss.0`."""
    rows = [
        {"run": name, "ended": run.saved.ended, **_row(record.to_json())}
        for name, run in runs.items()
        for record in run.saved.summary.epochs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name in _BY_PART:
            row |= {f"{name}.{part}": each for part, each in (value or {}).items()}
        elif name in _LISTS:
            row |= {f"{name}.{index}": each for index, each in enumerate(value or ())}
        elif name == "trained":
            row[name] = " ".join(map(str, value))
        elif name == "bytes":
            for kind, count in value.items():
                if isinstance(count, list):
                    row |= {f"bytes.{kind}.{source}": each for source, _, each in count}
                else:
                    row[f"bytes.{kind}"] = count
        else:
            row[name] = value
    return row
