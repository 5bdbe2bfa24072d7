"""Choices that the source leaves open, tried one factor at a time: short runs end to end of the small size.

Writes choose.md and choose.json. What is chosen stands in `CHOSEN` of rows.py, for all rows.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import in_words
from benchmarks.published.results import measure, time_of
from benchmarks.published.rows import ROWS, SIZES, Line, Settings, launch_arguments
from benchmarks.published.slices import Leg, Slice
from pipeflow.errors import ConfigError

EPOCHS = 6
BASE = {
    "optim.name": "adam",
    "optim.batch_size": "64",
    "optim.warmup_steps": "100",
    "data.flip": "false",
    "run.seed": "0",
}
VARIANTS = {
    "base": {},
    "seed1": {"run.seed": "1"},
    "adamax": {"optim.name": "adamax"},
    "batch32": {"optim.batch_size": "32"},
    "batch128": {"optim.batch_size": "128"},
    "flip": {"data.flip": "true"},
    "warmup0": {"optim.warmup_steps": "0"},
    "warmup400": {"optim.warmup_steps": "400"},
}
ROW = ROWS["glow_lr1e-4"]


def choose(part: Slice, overrides: Mapping[str, str], data: str | None, runs: Path, out: Path) -> dict[str, str]:
    """Runs what is missing, as far as the slice goes, and writes what is there; errors by variant.

    Raises ConfigError where the overrides set what is to be chosen.
    """
    for name in BASE.keys() & overrides.keys():
        raise ConfigError(f"--set {name}: is one of what --choose tries ({', '.join(BASE)}): leave it out.")
    legs, lines = {}, []
    for name, changes in VARIANTS.items():
        settings = Settings(size="small", overrides={**overrides, **BASE, **changes})
        row = replace(ROW, name=name)
        arguments = launch_arguments(row, data, settings.options(row, EPOCHS))
        legs[name] = [Leg(row=name, epochs=EPOCHS, runs=runs, arguments=arguments)]
        lines.append(Line(name=name, title=name, row=row, epochs=EPOCHS))
    errors = part.run(legs)
    measured, _ = measure(lines, Settings(size="small", overrides=overrides), runs)
    write(measured, overrides, out)
    return errors


def write(measured: Mapping[str, dict], overrides: Mapping[str, str], out: Path) -> None:
    """choose.md and choose.json, of the variants that have ended."""
    ended = {name: line for name, line in measured.items() if line["ended"]}
    (out / "choose.json").write_text(
        json.dumps({"epochs": EPOCHS, "overrides": overrides, "variants": ended}, indent=1) + "\n"
    )
    (out / "choose.md").write_text("\n".join(_table(ended, overrides)) + "\n")


def _table(ended: Mapping[str, dict], overrides: Mapping[str, str]) -> Sequence[str]:
    machines = dict.fromkeys(in_words(line["machine"]) for line in ended.values())
    base = ended.get("base")
    words = ["python", "-m", "benchmarks.published.run", "--choose"]
    words += [word for name, value in overrides.items() for word in ("--set", f"{name}={value}")]
    lines = [
        "# What the source leaves open",
        "",
        f"`{shlex.join([*words, '--data', 'cifar10.zip'])}` on {'; '.join(machines) or 'no machine yet'}.",
        "",
        f"{EPOCHS} epochs end to end of {SIZES['small'].title}; the base is "
        f"{', '.join(f'{name} {value}' for name, value in BASE.items())}, and each run changes one thing. Bits/dim of all "
        "test images, one seed a run: what differs from the base by less than seed1 does, does not differ. Minutes are "
        "of the cores on the CPU, of the clock on a GPU.",
        "",
        "| run | changed | bits/dim | - base | minutes |",
        "|---|---|---|---|---|",
    ]
    for name, changes in VARIANTS.items():
        changed = ", ".join(f"{option} {value}" for option, value in changes.items()) or "nothing"
        line = ended.get(name)
        if line is None:
            lines.append(f"| {name} | {changed} | not measured | - | - |")
            continue
        apart = f"{line['test_bpd'] - base['test_bpd']:+.3f}" if base is not None else "-"
        lines.append(f"| {name} | {changed} | {line['test_bpd']:.3f} | {apart} | {time_of(line) / 60:.1f} |")
    return lines
