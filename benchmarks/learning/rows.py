"""Rows of a study's table and figure: an arm's runs of results.json at its best rate, beside the first arm's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import mean, stdev
from typing import Any

from benchmarks.learning.costs import RATES, predicted
from benchmarks.learning.studies import Arm, Study


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

    arm: Arm
    first: Arm
    """The study's, which trains end to end."""
    workers: int
    """That both have in the planner: one for each part, the study's number for an arm without parts."""
    rate: float
    tried: Mapping[float, float | None]
    """Bits/dim by rate, of the first seed; None where training was stopped."""
    bits: Sequence[float]
    """Bits/dim of all test images, a seed each."""
    stopped: int
    """Seeds with which training was stopped."""
    above: float
    """Mean bits/dim above the first arm's of the same seeds."""
    is_by_parts: bool
    """Whether it has parts that train by themselves."""
    exits: Sequence[float]
    """Mean bits/dim after each part, under its head; none end to end."""
    depths: Sequence[float]
    """Share of the flow's multiply-adds that stands before each exit."""
    macs: float
    """Multiply-adds of training, the first arm's being 1."""
    head_share: float
    """Share of the heads in a forward's multiply-adds."""
    forward: float | None
    """Bytes of latents, as if each part had a worker; None end to end, where they depend on the system."""
    machines: Sequence[str]

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """By the planner, for each kind of link; the quickest end-to-end system of the first arm's epochs has 1."""
        own, rival = predicted(self.arm.options, self.workers), predicted(self.first.options, self.workers)
        return {rate: own[rate] / rival[rate] for rate in RATES}

    @property
    def error(self) -> float | None:
        """Standard error of the mean bits/dim; None with one seed."""
        num = len(self.bits)
        return stdev(self.bits) / math.sqrt(num) if num > 1 else None

    def bits_in_words(self) -> str:
        """The mean, with its standard error where there are several seeds, and their number."""
        num, error = len(self.bits), "" if self.error is None else f" ± {self.error:.3f}"
        return f"{mean(self.bits):.3f}{error} ({num}{f', {self.stopped} stopped' * (self.stopped > 0)})"

    def forward_in_words(self) -> str:
        """Megabytes of latents."""
        return "-" if self.forward is None else f"{self.forward / 1e6:,.0f}"


def make_rows(values: Mapping[str, Any], study: Study, seeds: Sequence[int]) -> list[Row]:
    """Of each arm that is measured, in the study's order. values: of results.json."""
    runs, rows = values["runs"], list[Row]()
    reference: tuple[dict[int, float], float] | None = None
    if best_rate(runs, study.arms[0].name, seeds[0]) is None:
        return []
    for arm in study.arms:
        best = best_rate(runs, arm.name, seeds[0])
        if best is None:
            continue
        by_seed = {seed: runs.get(run_key(arm.name, best, seed), {}) for seed in seeds}
        stopped = sum("error" in run for run in by_seed.values())
        bits = {seed: run["test_bpd"] for seed, run in by_seed.items() if "test_bpd" in run}
        found = [by_seed[seed] for seed in bits]
        macs = mean(run["train_macs"] for run in found)
        reference = reference or (bits, macs)
        exits = zip(*(run["exit_bpd"] for run in found)) if all(run["exit_bpd"] for run in found) else ()
        parts, is_by_parts = found[0]["parts"], arm.options.get("schedule.mode") != "end_to_end"
        rows.append(Row(
            arm=arm,
            first=study.arms[0],
            workers=len(parts) if len(parts) > 1 else study.workers,
            rate=best,
            tried={rate: run.get("test_bpd") for rate, run in runs_of(runs, arm.name, seeds[0]).items()},
            bits=[*bits.values()],
            stopped=stopped,
            above=mean(bits[seed] - reference[0][seed] for seed in bits if seed in reference[0]),
            is_by_parts=is_by_parts,
            exits=[mean(each) for each in exits],
            depths=_depths(parts),
            macs=macs / reference[1],
            head_share=sum(part.get("head_macs", 0) for part in parts) / sum(part["forward_macs"] for part in parts),
            forward=mean(sum(run["bytes"]["forward"]) for run in found) if is_by_parts else None,
            machines=list(dict.fromkeys(run.get("machine", values["machine"]["cpu"]) for run in found)),
        ))  # fmt: skip
    return rows


def _depths(parts: Sequence[Mapping[str, Any]]) -> list[float]:
    cumulative = list(accumulate(part["forward_macs"] - part.get("head_macs", 0) for part in parts))
    return [each / cumulative[-1] for each in cumulative]
