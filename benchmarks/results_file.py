"""results.json of a benchmark that is interrupted and goes on: what was measured is on the disk at once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine


class ResultsFile:
    """The measurements of one benchmark with one set of settings, by kind and key."""

    def __init__(self, path: Path, command: str, settings: dict[str, Any], kinds: Sequence[str]):
        """Reads what is there already. command: what makes the results again; kinds: of measurements.

        Raises ValueError where that was measured with other settings.
        """
        self.path = path
        self.values: dict[str, Any] = {
            "machine": describe_machine(),
            "command": command,
            "settings": settings,
            **{kind: {} for kind in kinds},
        }
        if path.exists():
            self.values = json.loads(path.read_text())
            if self.values["settings"] != settings:
                raise ValueError(
                    f"{path} was measured with {self.values['settings']}, now asked for is {settings}: choose another "
                    f"--out, or remove the file."
                )

    def add(self, kind: str, key: str, value: dict) -> None:
        """Adds one, and saves."""
        self.values[kind][key] = value
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.values, indent=1) + "\n")
        new.replace(self.path)
