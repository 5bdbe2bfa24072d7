"""Images a second of a training step: pipeflow, normflows' Glow and the device's limit, in turn.

    python -m benchmarks.step.run [--device cpu|cuda] [--size published small parts] [--batch 16 64 512] [--systems ...]
                                  [--rounds 3] [--seconds 6] [--threads 2] [--add] [--out FOLDER]

Each system is a process of its own that stays alive. It builds its flow, trains a first step, warms up; then the systems
take turns, round by round, never two at a time, and at the end of each round the device's limits are measured. Behind them
the kinds of layers are timed by themselves. Where the processor has no arithmetic for bfloat16, nothing is measured in it.
Results are written after each case, to results.md and results.json beside this file; what the other device gave is kept in
them, and with `--add` the cases and systems that were measured before on this one.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.by_device import make_parser, read, save
from benchmarks.machine import command_line, describe_machine, same_machine
from benchmarks.step.held import Held, OutOfMemory
from benchmarks.step.limits import Limits, best
from benchmarks.step.report import NO_BFLOAT16, coupling_type, name_of, report
from benchmarks.step.roofline import Roofline
from benchmarks.step.systems import MODELS, NORMFLOWS, SYSTEMS, Case, cases
from benchmarks.step.training import Training
from pipeflow.device import choose_device, has_bfloat16

HERE = Path(__file__).parent
PROGRAM = "benchmarks.step.run"
SIZES = {"cpu": ["published", "small", "parts"], "cuda": ["published", "parts"]}
BATCH_SIZES = {
    "cpu": {"published": [16], "small": [64], "parts": [16], "toy": [4]},
    "cuda": {"published": [64, 512], "small": [64], "parts": [64], "toy": [4]},
}
SAME_SIZE = 0.02
"""Share by which numbers of parameters may differ between systems that are compared."""
_LEAST_STEPS = 2
_NUM_LIMITS = 10
"""Kinds of work by which the limits are looked for: together they get as long as a system's turn."""


def measure(
    case: Case, systems: dict[str, dict], rounds: int, seconds: float, threads: int, bfloat16: bool = True
) -> dict:
    """All systems of one case, in turn; `rounds` has each system's images a second.

    systems: options by name; those of normflows, which knows no parts, are left out of a part's case.
    seconds: of a system's turn, about. bfloat16: whether the device has arithmetic for it; if not, systems that need it are
    not started, and have the reason as `not_measured`.
    """
    held: dict[str, Held] = {}
    started: dict[str, dict] = {}
    measured, limits = [], []
    try:
        for name, options in systems.items():
            if not bfloat16 and coupling_type({"options": options}) == "bfloat16":
                started[name] = {"options": options, "not_measured": NO_BFLOAT16}
            elif case.part is None or name not in NORMFLOWS:
                started[name] = _start(case, name, options, threads, held)
                print(f"{case.name}: {name}: {json.dumps(started[name])}", flush=True)
        check_parameters(started)
        for _ in range(rounds):
            measured.append({name: rate for name in list(held) if (rate := _turn(name, seconds, started, held))})
            # In a process that ends with it: its arrays take memory that the systems need in their turns.
            limits.append(in_own_process(threads, Limits, (case.device, seconds / _NUM_LIMITS, bfloat16), "measure"))
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
    """The result of one call of a method, in a process that ends with it."""
    process = Held(threads, factory, *arguments)
    try:
        return process.call(name, *of_call)
    finally:
        process.close()


def measure_roofline(case: Case, limits: dict, seconds: float, threads: int) -> dict[str, list[dict]]:
    """Rows of kinds of layers, by type of the coupling nets: of each type that has limits."""
    return {
        dtype: in_own_process(threads, Roofline, (case, seconds), "measure", dtype, limits) for dtype in limits["flops"]
    }


def added(before: dict, measured: list[dict]) -> list[dict]:
    """The cases that were measured before, with what is new in them.

    before: the device's section of results.json. Rounds of a case are put one behind the other: ratios are taken in each
    of them. A system that was measured again is left out of the old ones.

    Raises ValueError where the old ones are of another machine.
    """
    if not before:
        return measured
    if not same_machine(before["machine"], describe_machine()):
        raise ValueError(f"--add: the results are of another machine, {before['machine']}: choose another --out")
    kept = {name_of(result["case"]): result for result in before["cases"]}
    for result in measured:
        name = name_of(result["case"])
        old = kept.get(name)
        if old is not None:
            rounds = [
                {key: rate for key, rate in each.items() if key not in result["systems"]} for each in old["rounds"]
            ]
            result = {
                **old,
                **result,
                "systems": {**old["systems"], **result["systems"]},
                "rounds": [each for each in rounds if each] + result["rounds"],
                "limits": best([old["limits"], result["limits"]]),
            }
        kept[name] = result
    return list(kept.values())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with the device's defaults."""
    parser = make_parser(__doc__, HERE)
    parser.add_argument("--size", nargs="+", choices=(*MODELS, "parts"))
    parser.add_argument("--batch", type=int, nargs="+", help="for all sizes, instead of each size's own")
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn, about")
    parser.add_argument("--add", action="store_true", help="keep the cases and systems that were measured before")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    options.size = options.size or SIZES[options.device]
    options.systems = options.systems or [*SYSTEMS]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results, after each case."""
    options = parse_arguments(arguments)
    batch_sizes = dict.fromkeys(options.size, options.batch) if options.batch else BATCH_SIZES[options.device]
    systems = {name: SYSTEMS[name] for name in options.systems}
    bfloat16 = has_bfloat16(choose_device(options.device))
    before = read(options.out / "results.json").get(options.device, {}) if options.add else {}
    measured: list[dict] = []
    for case in cases(options.size, batch_sizes, options.device):
        result = measure(case, systems, options.rounds, options.seconds, options.threads, bfloat16)
        if case.part is None:
            result["roofline"] = measure_roofline(case, result["limits"], options.seconds, options.threads)
        measured.append(result)
        commands = [before["command"]] if before else []
        command = "; ".join([*commands, command_line(PROGRAM, arguments)])
        found = {"command": command, "cases": added(before, measured), "bfloat16": bfloat16}
        save(options, "results", PROGRAM, arguments, found, report)


if __name__ == "__main__":
    main()
