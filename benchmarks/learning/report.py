"""results.md of the study: a table and a figure for each study, from what results.json has."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.costs import FLOPS, RATES, end_to_end_by_wire
from benchmarks.learning.figure import draw
from benchmarks.learning.rows import Row, best_rate, make_rows, run_key
from benchmarks.learning.studies import Study
from benchmarks.machine import in_words


def write_report(values: Mapping[str, Any], studies: Sequence[Study], seeds: Sequence[int], out: Path) -> None:
    """Writes it into the folder `out`. values: of results.json."""
    machines = values.get("machines", {}).values() or [values["machine"]]
    lines = [
        "# Parts without end-to-end epochs",
        "",
        f"`{values['command']}` on {'; '.join(in_words(each) for each in machines)}; one process a run, one thread.",
        "",
        "Bits/dim of all test images: mean over seeds, with the standard error where there are several; each arm at its "
        "best rate of those tried, by the first seed and the same images. What an arm is above end to end is of the seeds "
        "that both have. Exits are after each part, under its head. "
        "Multiply-adds are of training, heads included; the heads' share is of a forward. MB = 1e6 bytes of float32 "
        "latents, as if each part had a worker. Seconds are the planner's, with a "
        f"worker for each part of {FLOPS / 1e9:g} GFLOP/s, over those of the system that is quickest there "
        "to train end to end for as many epochs as the first arm: one worker, or a pipeline or data parallelism that sends "
        "latents and gradients in bfloat16.",
    ]
    shown: set[str] = set()
    for study in studies:
        rows = make_rows(values, study, seeds)
        if {row.arm.name for row in rows} <= shown:  # nothing of its own is measured yet
            continue
        shown |= {row.arm.name for row in rows}
        lines += ["", f"## {study.title}", "", *_table(rows, study)]
        lines += ["", _rivals(study), *_gradients(values["runs"], study, seeds[0])]
        draw(study.title, rows, out / f"{study.name}.png")
        lines += ["", f"![Bits/dim by cost and by exit: {study.title}]({study.name}.png)"]
    (out / "results.md").write_text("\n".join(lines) + "\n")


def _table(rows: Sequence[Row], study: Study) -> Iterator[str]:
    yield (
        "| arm | best rate (tried) | bits/dim | above end to end | exits | multiply-adds, end to end = 1 | heads' share "
        f"| MB forward | seconds, {' | seconds, '.join(RATES)} | machine |"
    )
    yield "|---|---|---|---|---|---|---|---|---|" + "---|" * len(RATES)
    for row in rows:
        tried = (f"{rate:g}: " + ("stopped" if bits is None else f"{bits:.3f}") for rate, bits in row.tried.items())
        yield (
            f"| {row.arm.name} | {row.rate:g} ({', '.join(tried)}) | {row.bits_in_words()} | {row.above:+.3f} "
            f"| {', '.join(f'{each:.3f}' for each in row.exits) or '-'} | {row.macs:.2f} | {row.head_share:.0%} "
            f"| {row.forward_in_words()} | {' | '.join(f'{row.seconds[rate]:.2f}' for rate in RATES)} "
            f"| {', '.join(row.machines)} |"
        )
    if missing := [arm.name for arm in study.arms if arm.name not in {row.arm.name for row in rows}]:
        yield from ("", f"Not measured: {'; '.join(missing)}.")


def _rivals(study: Study) -> str:
    """How the seconds over 100 Mbit/s change with what the end-to-end system sends."""
    seconds = end_to_end_by_wire(study.arms[0].options, study.workers)
    float32, power = (seconds[sent] / seconds["bfloat16"] for sent in ("float32", "PowerSGD"))
    return (
        f"On {study.workers} workers over 100 Mbit/s the quickest system that trains end to end takes {float32:.2f} where "
        f"everything is sent in float32, and {power:.2f} as data parallelism with PowerSGD."
    )


def _gradients(runs: Mapping[str, Any], study: Study, seed: int) -> list[str]:
    """A table of the cosines between local and end-to-end gradients, of the arms that have them."""
    found = {}
    for arm in study.arms:
        rate = best_rate(runs, arm.name, seed)
        if rate is not None and (its := runs[run_key(arm.name, rate, seed)].get("cosines")):
            found[arm.name] = its
    epochs = sorted({epoch for each in found.values() for epoch in each}, key=int)
    if not epochs:
        return []
    lines = [
        "",
        "Cosine between the local and the end-to-end gradient of each part but the last, behind so many epochs:",
        "",
    ]
    lines += [f"| arm | {' | '.join(epochs)} |", "|---|" + "---|" * len(epochs)]
    for arm, by_epoch in found.items():
        cells = [
            ", ".join(f"{each:.2f}" for each in by_epoch[epoch][:-1]) if epoch in by_epoch else "-" for epoch in epochs
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines
