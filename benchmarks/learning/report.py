"""results.md of the study: a table for each study, from what results.json has."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.learning.costs import FLOPS, RATES, end_to_end_by_wire, predicted
from benchmarks.learning.studies import Arm, Study
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
        "best rate of those tried, by the first seed and the same images. Exits are after each part, under its head. "
        "Multiply-adds are of training, heads included; the heads' share is of a forward. MB = 1e6 bytes of float32 "
        "latents, as if each part had a worker. Seconds are the planner's, with a "
        f"worker for each part of {FLOPS / 1e9:g} GFLOP/s, over those of the system that is quickest there "
        "to train end to end for as many epochs as the first arm: one worker, or a pipeline or data parallelism that sends "
        "latents and gradients in bfloat16.",
    ]
    shown: set[str] = set()
    for study in studies:
        rows = make_rows(values, study, seeds)
        if {row.arm for row in rows} <= shown:  # nothing of its own is measured yet
            continue
        shown |= {row.arm for row in rows}
        lines += ["", f"## {study.title}", "", *_table(rows, study)]
        lines += ["", _rivals(study), *_gradients(values["runs"], study, seeds[0])]
    (out / "results.md").write_text("\n".join(lines) + "\n")


def run_key(arm: str, rate: float, seed: int) -> str:
    """Name of a run in results.json."""
    return f"{arm} | {rate:g} | {seed}"


def runs_of(runs: Mapping[str, Any], arm: str, seed: int) -> dict[float, Any]:
    """What results.json has of an arm with one seed, by rate."""
    found = {}
    for key, run in runs.items():
        its_arm, rate, its_seed = key.rsplit(" | ", 2)
        if (its_arm, its_seed) == (arm, str(seed)):
            found[float(rate)] = run
    return dict(sorted(found.items()))


def best_rate(runs: Mapping[str, Any], arm: str, seed: int) -> float | None:
    """The rate at which the arm has the fewest bits/dim with this seed, of those at which its run has ended."""
    ended = {rate: run for rate, run in runs_of(runs, arm, seed).items() if "test_bpd" in run}
    return min(ended, key=lambda rate: ended[rate]["test_bpd"], default=None)


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm's runs at its best rate, over all seeds, beside the study's first arm."""

    arm: str
    rate: float
    tried: Mapping[float, float | None]
    """Bits/dim by rate, of the first seed; None where training was stopped."""
    bits: Sequence[float]
    """Bits/dim of all test images, a seed each."""
    stopped: int
    """Seeds with which training was stopped."""
    above: float
    """Mean bits/dim above the first arm's."""
    exits: Sequence[float]
    """Mean bits/dim after each part, under its head; none end to end."""
    macs: float
    """Multiply-adds of training, the first arm's being 1."""
    head_share: float
    """Share of the heads in a forward's multiply-adds."""
    forward: float | None
    """Bytes of latents, as if each part had a worker; None end to end, where they depend on the system."""
    seconds: Mapping[str, float]
    """By the planner, of each kind of link, the quickest end-to-end system's of as many epochs as the first arm being 1."""
    machines: Sequence[str]

    def bits_in_words(self) -> str:
        """The mean, with its standard error where there are several seeds, and their number."""
        num = len(self.bits)
        error = f" ± {stdev(self.bits) / math.sqrt(num):.3f}" if num > 1 else ""
        return f"{mean(self.bits):.3f}{error} ({num}{f', {self.stopped} stopped' * (self.stopped > 0)})"

    def forward_in_words(self) -> str:
        """Megabytes of latents."""
        return "-" if self.forward is None else f"{self.forward / 1e6:,.0f}"


def make_rows(values: Mapping[str, Any], study: Study, seeds: Sequence[int]) -> list[Row]:
    """Of each arm that is measured, in the study's order. values: of results.json."""
    runs, rows = values["runs"], list[Row]()
    reference: tuple[float, float] | None = None
    if best_rate(runs, study.arms[0].name, seeds[0]) is None:
        return []
    for arm in study.arms:
        best = best_rate(runs, arm.name, seeds[0])
        if best is None:
            continue
        found = [runs.get(run_key(arm.name, best, seed), {}) for seed in seeds]
        stopped = sum("error" in run for run in found)
        found = [run for run in found if "test_bpd" in run]
        bits, macs = [run["test_bpd"] for run in found], mean(run["train_macs"] for run in found)
        reference = reference or (mean(bits), macs)
        exits = zip(*(run["exit_bpd"] for run in found)) if all(run["exit_bpd"] for run in found) else ()
        parts, is_by_parts = found[0]["parts"], arm.options.get("schedule.mode") != "end_to_end"
        rows.append(Row(
            arm=arm.name,
            rate=best,
            tried={rate: run.get("test_bpd") for rate, run in runs_of(runs, arm.name, seeds[0]).items()},
            bits=bits,
            stopped=stopped,
            above=mean(bits) - reference[0],
            exits=[mean(each) for each in exits],
            macs=macs / reference[1],
            head_share=sum(part.get("head_macs", 0) for part in parts) / sum(part["forward_macs"] for part in parts),
            forward=mean(sum(run["bytes"]["forward"]) for run in found) if is_by_parts else None,
            seconds=_seconds(study, arm, len(parts)),
            machines=list(dict.fromkeys(run.get("machine", values["machine"]["cpu"]) for run in found)),
        ))  # fmt: skip
    return rows


def _table(rows: Sequence[Row], study: Study) -> Iterator[str]:
    yield (
        "| arm | best rate (tried) | bits/dim | above end to end | exits | multiply-adds, end to end = 1 | heads' share "
        f"| MB forward | seconds, {' | seconds, '.join(RATES)} | machine |"
    )
    yield "|---|---|---|---|---|---|---|---|---|" + "---|" * len(RATES)
    for row in rows:
        tried = (f"{rate:g}: " + ("stopped" if bits is None else f"{bits:.3f}") for rate, bits in row.tried.items())
        yield (
            f"| {row.arm} | {row.rate:g} ({', '.join(tried)}) | {row.bits_in_words()} | {row.above:+.3f} "
            f"| {', '.join(f'{each:.3f}' for each in row.exits) or '-'} | {row.macs:.2f} | {row.head_share:.0%} "
            f"| {row.forward_in_words()} | {' | '.join(f'{row.seconds[rate]:.2f}' for rate in RATES)} "
            f"| {', '.join(row.machines)} |"
        )
    if missing := [arm.name for arm in study.arms if arm.name not in {row.arm for row in rows}]:
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


def _seconds(study: Study, arm: Arm, num_parts: int) -> dict[str, float]:
    """The arm's seconds on a worker for each part, over those of the first arm, which trains end to end, on as many."""
    workers = num_parts if num_parts > 1 else study.workers
    own, rival = predicted(arm.options, workers), predicted(study.arms[0].options, workers)
    return {rate: own[rate] / rival[rate] for rate in RATES}
