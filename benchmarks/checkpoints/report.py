"""results.md from what was measured."""

from collections.abc import Iterator
from statistics import median

from benchmarks.by_device import sections

GOAL = 1.05
"""A step beside a checkpoint, at most, over one without."""


def report(document: dict) -> str:
    """results.md; document: what `run.py` measured, by device."""
    lines = [
        "# Checkpoints beside the training",
        "",
        "Ratio: median step that began while the checkpoint was being written, over the median step without one, of the "
        "same round. With the copy: all these steps and the stall before them, over as many median steps without. Below "
        "the rounds their medians.",
    ]
    return "\n".join([*lines, *sections(document, "benchmarks.checkpoints.run", _table)]) + "\n"


def ratio(result: dict) -> float:
    """Ratio of a step beside a checkpoint to one without, in one round."""
    return median(result["steps_s"]) / median(result["quiet_steps_s"])


def ratio_with_copy(result: dict) -> float:
    """Ratio of the seconds until the checkpoint was whole to those of as many steps without one."""
    taken = result["stall_s"] + sum(result["steps_s"])
    return taken / (len(result["steps_s"]) * median(result["quiet_steps_s"]))


def _table(measured: dict) -> Iterator[str]:
    rounds = [result for result in measured["rounds"] if result["steps_s"]]
    yield (
        f"{measured['num_parameters']:,} parameters, batch {measured['batch_size']}, {measured['bytes'] / 1e6:,.0f} MB a "
        f"checkpoint. The first copy, which also gets its memory: {measured['first_copy_s']:.2f} s."
    )
    yield ""
    if not rounds:
        yield "Every checkpoint was whole before a step began: nothing to compare."
        return
    found = median(map(ratio, rounds))
    yield (
        f"- Goal, a step beside a checkpoint at most {GOAL:.2f} of one without: {found:.3f}, "
        f"{'met' if found <= GOAL else 'missed'}."
    )
    yield ""
    yield (
        "| round | a step, s | beside a checkpoint, s | steps beside | ratio | with the copy | stall for the copy, s "
        "| whole after, s | waited for at once, s | stall as before, s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    rows = [_row(result) for result in rounds]
    for number, row in enumerate(rows, start=1):
        yield f"| {number} | {' | '.join(_cells(row))} |"
    yield f"| median | {' | '.join(_cells([median(column) for column in zip(*rows)]))} |"


def _row(result: dict) -> list[float]:
    return [
        median(result["quiet_steps_s"]),
        median(result["steps_s"]),
        len(result["steps_s"]),
        ratio(result),
        ratio_with_copy(result),
        *(result[key] for key in ("stall_s", "whole_s", "waited_for_s", "as_before_s")),
    ]


def _cells(row: list[float]) -> list[str]:
    formats = ("{:.3f}", "{:.3f}", "{:.0f}", "{:.3f}", "{:.3f}", "{:.3f}", "{:.1f}", "{:.2f}", "{:.2f}")
    return [text.format(value) for text, value in zip(formats, row, strict=True)]
