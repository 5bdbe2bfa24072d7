"""results.md from what results.json holds: a table for each rate, and which goals are met, from measured rows alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import in_words
from benchmarks.whole_run.systems import ONE, SYSTEMS, Setting, System

SPEED_GOALS = {"none": 1.0, "100": 1.5, "20": 2.0}
"""How many times as fast as the fastest pipeline the planner's choice is to be, by rate."""
BPD_GOAL = 0.02
"""By how many bits/dim it may end above end to end."""
ERROR_GOAL = 0.15
"""By what share of the measured seconds a prediction may be wrong."""


@dataclass(frozen=True)
class Row:
    """A system at a rate: medians over the rounds."""

    system: System
    rate: str
    setting: Setting
    workers: int
    seconds: float
    predicted: float | None
    bpd: float
    forward: float
    backward: float
    gathered: float
    rounds: int

    @property
    def error(self) -> float | None:
        """Of the prediction, as a share of what was measured."""
        return None if self.predicted is None else self.predicted / self.seconds - 1


class Measured:
    """All rows, by rate and system."""

    def __init__(self, results: dict):
        self.rates = sorted(results["choices"], key=lambda rate: -float("inf" if rate == "none" else rate))
        self._best = {rate: choice["best"] for rate, choice in results["choices"].items()}
        rounds: dict[tuple[str, str], list[dict]] = {}
        for row in results["rows"].values():
            for rate in self.rates if row["system"] == ONE else [row["rate"]]:  # one worker has no links
                rounds.setdefault((rate, row["system"]), []).append(row)
        self.rows = {
            (rate, name): _median(SYSTEMS[name], rate, rounds[rate, name])
            for rate in self.rates
            for name in SYSTEMS
            if (rate, name) in rounds
        }

    def at(self, rate: str) -> list[Row]:
        """The rows of a rate, in the order of the systems."""
        return [row for (of_rate, _), row in self.rows.items() if of_rate == rate]

    def one(self, rate: str) -> Row | None:
        """End to end on one worker."""
        return self.rows.get((rate, ONE))

    def best_of_ours(self, rate: str) -> Row | None:
        """The row that the planner named as the quickest of pipeflow's, before any was measured."""
        return self.rows.get((rate, self._best[rate]))

    def pipelines(self, rate: str) -> list[Row]:
        """Those that train end to end in a pipeline in all epochs, the fastest first."""
        return sorted((row for row in self.at(rate) if row.system.is_pipeline), key=lambda row: row.seconds)


def _median(system: System, rate: str, rounds: Sequence[dict]) -> Row:
    def of(name: str) -> float:
        return median(row[name] for row in rounds)

    first = rounds[0]
    numbers = {name: of(name) for name in ("seconds", "forward", "backward", "gathered")}
    return Row(
        system=system, rate=rate, setting=Setting(first["options"]), workers=first["workers"],
        predicted=first["predicted"], bpd=of("test_bpd"), rounds=len(rounds), **numbers,
    )  # fmt: skip


def verdicts(measured: Measured) -> Iterator[str]:
    """A sentence for each goal, of what was measured."""
    for rate in measured.rates:
        ours, pipelines, one = measured.best_of_ours(rate), measured.pipelines(rate), measured.one(rate)
        where = _beginning(link_words(rate))
        if rate in SPEED_GOALS:
            goal = f"goal {SPEED_GOALS[rate]:g}"
            if ours is None or not pipelines:
                yield f"{where}: speed beside the fastest pipeline ({goal}): not measured."
            else:
                times = pipelines[0].seconds / ours.seconds
                all_of_them = sum(system.is_pipeline for system in SYSTEMS.values())
                so_far = "" if len(pipelines) == all_of_them else f" of the {len(pipelines)} measured so far"
                yield (
                    f"{where}: {ours.system.title} is {times:.2f} times as fast as {pipelines[0].system.title}, the "
                    f"fastest pipeline{so_far} ({goal}): {_met(times >= SPEED_GOALS[rate])}."
                )
        if ours is not None and one is not None:
            above = ours.bpd - one.bpd
            yield (
                f"{where}: it ends {above:+.3f} bits/dim from end to end on one worker (at most +{BPD_GOAL}): "
                f"{_met(above <= BPD_GOAL)}."
            )
        yield from _data_parallel(measured, rate, ours)
    errors = {
        f"{row.system.title}, {link_words(row.rate)}": row.error for row in _once(measured) if row.error is not None
    }
    if errors:
        within = sum(abs(error) <= ERROR_GOAL for error in errors.values())
        worst = max(errors, key=lambda name: abs(errors[name]))
        yield (
            f"Predictions: {within} of {len(errors)} are within {ERROR_GOAL:.0%}; the worst is {errors[worst]:+.0%}, "
            f"{worst}: {_met(within == len(errors))}."
        )


def _data_parallel(measured: Measured, rate: str, ours: Row | None) -> Iterator[str]:
    """Where data parallelism is faster at as few bits/dim."""
    family = [row for row in measured.at(rate) if row.system.is_data_parallel]
    winning = [
        row for row in family if ours and row.seconds < ours.seconds and row.bpd <= ours.bpd + BPD_GOAL
    ]  # fmt: skip
    if winning:
        row = min(winning, key=lambda each: each.seconds)
        yield (
            f"{_beginning(link_words(rate))}: data parallelism wins: {row.system.title} takes {row.seconds:.0f} s against "
            f"{ours.seconds:.0f} s, at {row.bpd:.3f} against {ours.bpd:.3f} bits/dim."
        )


def _once(measured: Measured) -> list[Row]:
    """Every row, that of one worker a single time."""
    return [row for (rate, name), row in measured.rows.items() if name != ONE or rate == measured.rates[0]]


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def write_report(results: dict, folder: Path) -> None:
    """results.md into the folder."""
    settings, measured = results["settings"], Measured(results)
    images = "CIFAR-10" if settings["data"] else "drawn images"
    over = f" with {settings['config']} over it" if settings["config"] else ""
    lines = [
        "# Whole runs",
        "",
        f"`{results['command']}` on {in_words(results['machine'])}; each worker in a network namespace of its own, one "
        "thread a worker, gloo.",
        "",
        f"Small flow (3 blocks x 4 steps, width 64){over}, batch 64, lr 1e-3, cosine "
        f"decay; {settings['num_train']:,} images of {images} an epoch, {settings['local']} local and "
        f"{settings['finetune']} end-to-end epochs, all of which rivals train end to end; bits/dim of "
        f"{settings['num_test']:,} test images, seed {settings['seed']}. Seconds are from the first batch to the last "
        "update, the gather included; evaluations, checkpoints and starting are in none of them. Below 1 in the column "
        "after it is faster than the fastest pipeline. Predicted: by the planner from a probe of this machine, before the "
        "run; '-' where it does not know the system. MB = 1e6 bytes of payload, all workers; what is all-reduced counts as "
        "back. PowerSGD and local SGD begin after a tenth of the steps.",
    ]
    for rate in measured.rates:
        lines += ["", f"## {_beginning(link_words(rate))}", "", *_table(measured, rate)]
    lines += ["", "## Goals", "", *(f"- {sentence}" for sentence in verdicts(measured))]
    (folder / "results.md").write_text("\n".join(lines) + "\n")


def _table(measured: Measured, rate: str) -> Iterator[str]:
    yield (
        "| system | workers | setting | seconds | fastest pipeline = 1 | predicted | error | bits/dim | above one worker "
        "| MB forward | MB back | MB gathered |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    pipelines, one, best = measured.pipelines(rate), measured.one(rate), measured.best_of_ours(rate)
    rows = measured.at(rate)
    for row in rows:
        chosen = ", the planner's choice" if row is best else ""
        ratio = f"{row.seconds / pipelines[0].seconds:.2f}" if pipelines else "-"
        predicted = "- | -" if row.predicted is None else f"{row.predicted:.1f} | {row.error:+.0%}"
        above = "-" if one is None else f"{row.bpd - one.bpd:+.3f}"
        megabytes = " | ".join(f"{count / 1e6:,.1f}" for count in (row.forward, row.backward, row.gathered))
        yield (
            f"| {row.system.title}{chosen} | {row.workers} | {row.setting.in_words() or '-'} | {row.seconds:.1f} | {ratio} "
            f"| {predicted} | {row.bpd:.3f} | {above} | {megabytes} |"
        )
    for name in (name for name in SYSTEMS if name not in {row.system.name for row in rows}):
        yield f"| {SYSTEMS[name].title} | - | - | not measured | - | - | - | - | - | - | - | - |"


def rate_name(rate: float | None) -> str:
    """A rate as results.json has it."""
    return "none" if rate is None else f"{rate:g}"


def link_words(rate: str) -> str:
    """`at 100 Mbit/s`."""
    return "without a limit" if rate == "none" else f"at {float(rate):g} Mbit/s"


def _beginning(words: str) -> str:
    return words[0].upper() + words[1:]
