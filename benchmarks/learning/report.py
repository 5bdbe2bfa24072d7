"""results.md of the study: a table for each study, from what results.json has."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.learning.costs import FLOPS, RATES, predicted
from benchmarks.learning.studies import Arm, Study
from benchmarks.machine import in_words


def write_report(values: Mapping[str, Any], studies: Sequence[Study], seeds: Sequence[int], out: Path) -> None:
    """Writes it into the folder `out`. values: of results.json."""
    machines = values.get("machines", {}).values() or [values["machine"]]
    measured = {key.rsplit(" | ", 2)[0] for key, run in values["runs"].items() if "test_bpd" in run}
    lines = [
        "# Parts without end-to-end epochs",
        "",
        f"`{values['command']}` on {'; '.join(in_words(each) for each in machines)}; one process a run, one thread.",
        "",
        "Bits/dim of all test images: mean over seeds, with the standard error where there are several; each arm at its "
        "best rate. Exits are after each part, under its head. Multiply-adds are of training, heads included; the heads' "
        "share is of a forward. MB = 1e6 bytes of latents, as if each part had a worker. Seconds are the planner's, with a "
        f"worker for each part of {FLOPS / 1e9:g} GFLOP/s, over those of the system that is quickest there "
        "to train end to end for as many epochs as the first arm.",
    ]
    for study in studies:
        if study.arms[0].name not in measured:  # with nothing to compare it with
            continue
        lines += ["", f"## {study.title}", "", *_table(values["runs"], study, seeds, values["machine"]["cpu"])]
        lines += _gradients(values["runs"], study, seeds[0])
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


def _table(runs: Mapping[str, Any], study: Study, seeds: Sequence[int], first_machine: str) -> Iterator[str]:
    yield (
        "| arm | best rate (tried) | bits/dim | above end to end | exits | multiply-adds, end to end = 1 | heads' share "
        f"| MB forward | seconds, {' | seconds, '.join(RATES)} | machine |"
    )
    yield "|---|---|---|---|---|---|---|---|---|" + "---|" * len(RATES)
    reference, missing = None, []
    for arm in study.arms:
        rates, best = runs_of(runs, arm.name, seeds[0]), best_rate(runs, arm.name, seeds[0])
        if best is None:
            missing.append(arm.name)
            continue
        found = [runs.get(run_key(arm.name, best, seed), {}) for seed in seeds]
        found = [run for run in found if "test_bpd" in run]
        bpd, macs = mean(run["test_bpd"] for run in found), mean(run["train_macs"] for run in found)
        reference = reference or (bpd, macs)
        exits = zip(*(run["exit_bpd"] for run in found)) if all(run["exit_bpd"] for run in found) else ()
        parts = found[0]["parts"]
        share = sum(part.get("head_macs", 0) for part in parts) / max(1, sum(part["forward_macs"] for part in parts))
        tried = ", ".join(
            f"{rate:g}: {run['test_bpd']:.3f}" if "test_bpd" in run else f"{rate:g}: stopped"
            for rate, run in rates.items()
        )
        yield (
            f"| {arm.name} | {best:g} ({tried}) | {_with_error([run['test_bpd'] for run in found])} "
            f"| {bpd - reference[0]:+.3f} "
            f"| {', '.join(f'{mean(each):.3f}' for each in exits) or '-'} | {macs / reference[1]:.2f} | {share:.0%} "
            f"| {mean(sum(run['bytes']['forward']) for run in found) / 1e6:,.0f} | {_seconds(study, arm, len(parts))} "
            f"| {', '.join(dict.fromkeys(run.get('machine', first_machine) for run in found))} |"
        )
    if missing:
        yield from ("", f"Not measured: {'; '.join(missing)}.")


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


def _seconds(study: Study, arm: Arm, num_parts: int) -> str:
    """The arm's seconds on a worker for each part, and those of the first arm, which trains end to end, on as many."""
    workers = num_parts if num_parts > 1 else study.workers
    own, rival = predicted(arm.options, workers), predicted(study.arms[0].options, workers)
    return " | ".join(f"{own[rate] / rival[rate]:.2f}" for rate in RATES)


def _with_error(numbers: Sequence[float]) -> str:
    error = f" ± {stdev(numbers) / math.sqrt(len(numbers)):.3f} ({len(numbers)})" if len(numbers) > 1 else " (1)"
    return f"{mean(numbers):.3f}{error}"
