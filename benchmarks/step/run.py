"""Images a second of a training step: pipeflow, normflows' Glow and the device's limit, in turn.

    python -m benchmarks.step.run [--device cpu|cuda] [--size published small parts] [--batch 16 64 512] [--systems ...]
                                  [--rounds 3] [--seconds 6] [--threads 2]

Each system is a process of its own that stays alive. It builds its flow, trains a first step, warms up; then the systems
take turns, round by round, never two at a time, and at the end of each round the device's limits are measured. Behind them
the kinds of layers are timed by themselves. Writes results.md and results.json beside this file; what the other device gave
is kept in them.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.by_device import save
from benchmarks.step.held import Held, OutOfMemory
from benchmarks.step.limits import DTYPES, Limits, best
from benchmarks.step.report import report
from benchmarks.step.roofline import Roofline
from benchmarks.step.systems import NORMFLOWS, PIPEFLOW, Case, cases
from benchmarks.step.training import Training

HERE = Path(__file__).parent
SIZES = {"cpu": ["published", "small", "parts"], "cuda": ["published", "parts"]}
BATCH_SIZES = {
    "cpu": {"published": [16], "small": [64], "parts": [16]},
    "cuda": {"published": [64, 512], "small": [64], "parts": [64]},
}
SAME_SIZE = 0.02
"""By how much numbers of parameters may differ between systems that are compared."""
_LEAST_STEPS = 2
_WAYS = 12
"""In which the limits are looked for, about: together they get as long as a system's turn."""


def measure(case: Case, systems: dict[str, dict], rounds: int, seconds: float, threads: int) -> dict:
    """All systems of one case, in turn; `rounds` has each system's images a second.

    systems: options by name; those of normflows, which knows no parts, are left out of a part's case.
    seconds: of a system's turn, about.
    """
    held: dict[str, Held] = {}
    started: dict[str, dict] = {}
    measured, limits = [], []
    try:
        for name, options in systems.items():
            if case.part is None or name not in NORMFLOWS:
                started[name] = _start(case, name, options, threads, held)
                print(f"{case.name}: {name}: {json.dumps(started[name])}", flush=True)
        check_parameters(started)
        for _ in range(rounds):
            measured.append({name: rate for name in list(held) if (rate := _turn(name, seconds, started, held))})
            # In a process that ends with it: its arrays take memory that the systems need in their turns.
            limits.append(in_own_process(threads, Limits, (case.device, seconds / _WAYS), "measure"))
            print(f"{case.name}: {json.dumps(measured[-1])} {json.dumps(limits[-1])}", flush=True)
        for name, process in held.items():
            started[name].update(process.call("memory"))
    finally:
        for process in held.values():
            process.close()
    return {"case": asdict(case), "systems": started, "rounds": measured, "limits": best(limits)}


def _start(case: Case, name: str, options: dict, threads: int, held: dict[str, Held]) -> dict:
    """Builds a system and trains its first steps; what it says of itself, or that there was no memory for it."""
    try:
        process = Held(threads, Training, case, name, options)
    except OutOfMemory as error:
        return {"options": options, "out_of_memory": str(error)}
    held[name] = process
    try:
        return {"options": options, **process.call("start")}
    except OutOfMemory as error:
        held.pop(name).close()
        return {"options": options, "out_of_memory": str(error)}


def _turn(name: str, seconds: float, started: dict[str, dict], held: dict[str, Held]) -> float | None:
    """A system's images a second in its turn; None where there was no memory for it, and from then on it is out."""
    num_steps = max(_LEAST_STEPS, round(seconds / started[name]["step_s"]))
    try:
        return held[name].call("turn", num_steps)
    except OutOfMemory as error:
        started[name]["out_of_memory"] = str(error)
        held.pop(name).close()
        return None


def check_parameters(started: dict[str, dict]) -> None:
    """Raises ValueError where two systems differ in size: their speeds would not compare."""
    numbers = {name: each["num_parameters"] for name, each in started.items() if "num_parameters" in each}
    if numbers and max(numbers.values()) > (1 + SAME_SIZE) * min(numbers.values()):
        raise ValueError(f"the systems' flows differ by more than {SAME_SIZE:.0%} in parameters: {numbers}")


def in_own_process(threads: int, factory: type, arguments: tuple, name: str, *of_call: Any) -> Any:
    """What one call of a method gives in a process that ends with it."""
    process = Held(threads, factory, *arguments)
    try:
        return process.call(name, *of_call)
    finally:
        process.close()


def measure_roofline(case: Case, limits: dict, threads: int) -> dict[str, list[dict]]:
    """Rows of kinds of layers, by type of the coupling nets."""
    return {dtype: in_own_process(threads, Roofline, (case,), "measure", dtype, limits) for dtype in DTYPES}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the device's defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=tuple(SIZES))
    parser.add_argument("--size", nargs="+", choices=("published", "small", "parts"))
    parser.add_argument("--batch", type=int, nargs="+", help="for all sizes, instead of each size's own")
    parser.add_argument("--systems", nargs="+", choices=(*NORMFLOWS, *PIPEFLOW))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn, about")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    options.size = options.size or SIZES[options.device]
    if options.systems is None:
        options.systems = [name for name in (*NORMFLOWS, *PIPEFLOW) if options.device == "cuda" or "graphs" not in name]
    return options


def main() -> None:
    """Measures and writes the results."""
    options = parse_arguments()
    batch_sizes = dict.fromkeys(options.size, options.batch) if options.batch else BATCH_SIZES[options.device]
    systems = {name: {**NORMFLOWS, **PIPEFLOW}[name] for name in options.systems}
    measured = []
    for case in cases(options.size, batch_sizes, options.device):
        result = measure(case, systems, options.rounds, options.seconds, options.threads)
        if case.part is None:
            result["roofline"] = measure_roofline(case, result["limits"], options.threads)
        measured.append(result)
    save(HERE / "results", "benchmarks.step.run", options.device, options.threads, {"cases": measured}, report)


if __name__ == "__main__":
    main()
