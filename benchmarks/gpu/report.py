"""summary.md: what was done, what failed, what is left, and the checks' numbers."""

import json
from collections.abc import Iterator, Sequence

from benchmarks.gpu.slices import DONE, FAILED, Slice, State
from benchmarks.machine import describe_machine, in_words


def write_summary(slices: Sequence[Slice], state: State, command: str) -> str:
    """Writes it beside the state; its text."""
    text = "\n".join(_lines(slices, state, command)) + "\n"
    (state.folder / "summary.md").write_text(text)
    return text


def _lines(slices: Sequence[Slice], state: State, command: str) -> Iterator[str]:
    yield from ["# Measured on a GPU", "", f"`{command}` on {in_words(describe_machine())}.", ""]
    count = {status: sum(state.of(each.name).status == status for each in slices) for status in (DONE, FAILED)}
    left = [each.name for each in state.left(slices)]
    yield f"{count[DONE]} of {len(slices)} slices are done, {count[FAILED]} failed. Left: {', '.join(left) or 'nothing'}."
    yield from ["", "| slice | what | | s |", "|---|---|---|---|"]
    for each in slices:
        progress = state.of(each.name)
        yield f"| {each.name} | {each.title} | {progress.status or 'open'} | {progress.seconds:.0f} |"
    yield from _checks(state)
    for each in slices:
        if state.of(each.name).status == FAILED:
            yield from ["", f"## {each.name} failed", "", "```", state.of(each.name).error, "```"]


def _checks(state: State) -> Iterator[str]:
    files = sorted((state.folder / "checks").glob("*.json"))
    if not files:
        return
    yield from ["", "## The GPU against the CPU", "", "| check | number | found | expected | within | holds |"]
    yield "|---|---|---|---|---|---|"
    for file in files:
        for row in json.loads(file.read_text()):
            holds = abs(row["found"] - row["expected"]) <= row["bound"]
            yield (
                f"| {file.stem} | {row['name']} | {row['found']:.6g} | {row['expected']:.6g} | {row['bound']:g} "
                f"| {'yes' if holds else 'NO'} |"
            )
