"""Results that are measured device by device: what the other device gave stays in the files."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import describe_machine


def save(stem: Path, program: str, device: str, threads: int, measured: dict, report: Callable[[dict], str]) -> None:
    """Writes what was measured on a device into `stem`.json, and the table of all devices into `stem`.md.

    program: the module that was called, for the command that stands with the results.
    report: the table's text, of what was measured by device.
    """
    path = stem.with_suffix(".json")
    document = json.loads(path.read_text()) if path.exists() else {}
    document[device] = {
        "machine": describe_machine(),
        "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
        "threads": threads,
        **measured,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(document))
