"""Seconds of a whole short run from start to exit, which is what a user feels of a first step's overhead.

    python -m benchmarks.step.short_run [--device cpu|cuda] [--systems ...] [--rounds 3] [--threads 2]

`python -m pipeflow.launch`, small flow (3 x 4 steps, width 64) in one part, embedded images, two epochs, everything that a
run does in it: images, evaluations, checkpoints, samples. In turn, round by round. Each run begins with an empty cache of
compiled code; what is compiled runs once more with the cache that it left. Writes short_run.md and short_run.json beside
this file; what the other device gave is kept in them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import yaml

from benchmarks.by_device import make_parser, save, sections
from benchmarks.step.systems import PIPEFLOW, SMALL
from pipeflow.config import Config

HERE = Path(__file__).parent
PROGRAM = "benchmarks.step.short_run"
SYSTEMS = ("reference", "fast", "fast-compile")
LIMIT_S = 900.0
"""Seconds after which a run is given up."""
AGAIN = ", compiled before"


def configuration(options: dict, device: str, folder: Path) -> Config:
    """Two epochs of the small flow."""
    sections = {
        "run": {"dir": str(folder), "device": device, "resume": "never"},
        "model": SMALL,
        "parts": {"split": "balanced", "num": 1},
        "schedule": {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 2},
        "optim": {"lr": 1e-3, "clip_norm": 1.0},
    }
    return Config.from_dict({**sections, **options})


def measure(options: dict, device: str, threads: int) -> dict[str, float]:
    """Seconds of a run, by what is put behind the system's name: nothing, and AGAIN where something is compiled."""
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(scratch) / "compiled"),
        }
        compiles = options.get("precision", {}).get("compile", False)
        for name in ("", AGAIN) if compiles else ("",):
            path = Path(scratch) / "config.yaml"
            config = configuration(options, device, Path(scratch) / f"run{len(seconds)}")
            path.write_text(yaml.safe_dump(config.to_dict()))
            command = [sys.executable, "-m", "pipeflow.launch", "--config", str(path)]
            start = time.perf_counter()
            process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
            seconds[name] = time.perf_counter() - start
            if process.returncode != 0:
                sys.exit(f"{' '.join(command)} failed:\n{process.stderr[-3000:]}")
    return seconds


def report(document: dict) -> str:
    """short_run.md; document: rounds by device."""
    lines = [
        "# A whole short run",
        "",
        "Seconds from start to exit: median of the rounds (lowest to highest). Ratios are taken in each round.",
    ]
    return "\n".join([*lines, *sections(document, PROGRAM, _table)]) + "\n"


def _table(measured: dict) -> Iterator[str]:
    rounds = measured["rounds"]
    yield f"| system | s | {next(iter(rounds[0]))} = 1 |"
    yield "|---|---|---|"
    for name in rounds[0]:
        seconds = [each[name] for each in rounds]
        ratios = [each[name] / next(iter(each.values())) for each in rounds]
        yield f"| {name} | {median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {median(ratios):.2f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = make_parser(__doc__, HERE)
    parser.add_argument("--systems", nargs="+", choices=tuple(PIPEFLOW))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    rounds = []
    for number in range(options.rounds):
        rounds.append({})
        for name in options.systems or SYSTEMS:
            seconds = measure(PIPEFLOW[name], options.device, options.threads)
            rounds[-1].update({f"{name}{behind}": each for behind, each in seconds.items()})
        print(f"round {number}: {json.dumps(rounds[-1])}", flush=True)
    save(options, "short_run", PROGRAM, arguments, {"rounds": rounds}, report)


if __name__ == "__main__":
    main()
