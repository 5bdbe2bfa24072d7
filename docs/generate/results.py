"""The list of all tables of results, with processor, day and versions, from benchmarks/README.md and the JSON."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_QUESTION = re.compile(r"^\| `(\w+)/` \| (.*?) \|", re.MULTILINE)


def results() -> str:
    """A table for each question, with a row for each of its tables."""
    questions = _QUESTION.findall((BENCHMARKS / "README.md").read_text())
    return "\n\n".join(_question(folder, question) for folder, question in questions)


def _question(folder: str, question: str) -> str:
    lines = [f"## {folder}\n\n{question} {_how(folder)}"]
    rows = [row for path in sorted((BENCHMARKS / folder).rglob("*.md")) for row in _rows(path)]
    if rows:
        lines.append("| table | processor | day | versions |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(lines)


def _how(folder: str) -> str:
    readme = BENCHMARKS / folder / "README.md"
    return f"[How, and what it shows](BENCHMARKS/{folder}/README.md)." if readme.exists() else ""


def _rows(path: Path) -> Iterator[str]:
    """A row for each machine that a table has numbers of."""
    if not path.with_suffix(".json").exists():
        return
    title = path.read_text().partition("\n")[0].removeprefix("# ")
    place = path.relative_to(BENCHMARKS)
    if place.parts[1:-1]:
        title += f" ({'/'.join(place.parts[1:-1])})"
    machines = {
        json.dumps(machine): machine for machine in _machines(json.loads(path.with_suffix(".json").read_text()))
    }
    for machine in machines.values():
        processor = machine["cpu"] if machine["gpu"] == "none" else machine["gpu"]
        cores = "" if machine["gpu"] != "none" else f", {machine['cores']} cores"
        versions = f"torch {machine['torch']}, Python {machine['python']}, pipeflow {machine['pipeflow']}"
        yield f"| [{title}](BENCHMARKS/{place}) | {processor}{cores} | {machine['date']} | {versions} |"


def _machines(value: Any) -> Iterator[dict[str, str]]:
    """All machines in a document, wherever they are."""
    if isinstance(value, dict):
        if "cpu" in value and "torch" in value:
            yield value
        for each in value.values():
            yield from _machines(each)
    elif isinstance(value, list):
        for each in value:
            yield from _machines(each)
