"""How fast is each way of training one flow on several workers, what does it send, and how long do workers wait?

    python -m benchmarks.pipelines.run [--workers 2] [--batch 64 512] [--rounds 3] [--data path/to/cifar10.zip]

Runs the systems of systems.py in turn on the same flow, cuts, batches and threads. First a sweep over the micro-batches of
each pipeline schedule, then rounds in which each system runs once, a schedule at its best number of micro-batches. What has
been measured is kept in results_in_progress.json beside this file: the same command goes on where it was cut off. Writes
results.json and results.md at the end.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import yaml

from benchmarks.machine import command_line, describe_machine, in_words
from benchmarks.pipelines.launch import LaunchError, launch
from benchmarks.pipelines.systems import SYSTEMS, System, command, read
from pipeflow.config import Config

HERE = Path(__file__).parent
EPOCH = 4992
"""Images that bytes are given for, as 'an epoch'."""
MICRO_BATCHES = (2, 4, 8, 16)
REFERENCE = "pipeflow_concurrent"
DEFAULT = [name for name in SYSTEMS if not name.endswith("_bf16") or name in ("1f1b_bf16", "ddp_bf16")]
WARMUP = 5


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help=f"measured steps, but no more than {EPOCH} images hold")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=DEFAULT)
    parser.add_argument("--data", help="a zip or folder of images laid out as train/ and test/; else the embedded ones")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one run may take")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json and results.md")
    options = parser.parse_args()
    if REFERENCE not in options.systems:
        options.systems = [REFERENCE, *options.systems]
    return options


def configuration(options: argparse.Namespace, batch_size: int) -> Config:
    """The small flow in balanced parts, one a worker. An epoch is as many steps as are measured."""
    images = {"name": "images", "path": options.data} if options.data else {}
    return Config.from_dict(
        {
            "run": {"device": options.device},
            "data": {**images, "num_train": num_steps(options, batch_size) * batch_size, "num_test": 64},
            "model": {"num_blocks": 3, "num_steps": 4, "width": 64},
            "parts": {"split": "balanced", "num": options.workers},
            "optim": {"batch_size": batch_size, "lr": 1e-3},
            "eval": {"every_epochs": 1000, "num_images": 1},
            "checkpoint": {"every_epochs": 1000},
        }
    )


def num_steps(options: argparse.Namespace, batch_size: int) -> int:
    """Measured steps of a batch of this size."""
    return min(options.steps, EPOCH // batch_size)


class Measurements:
    """All measurements so far, each run by its key; kept on the disk from run to run."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.path = options.results / "results_in_progress.json"
        settings = {key: value for key, value in vars(options).items() if key not in ("results", "timeout")}
        self.runs: dict[str, dict] = {}
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            if kept["settings"] != settings:
                raise SystemExit(f"{self.path} is of other options: finish that command, or remove the file")
            self.runs = kept["runs"]
        self.settings = settings

    def measure(self, key: str, system: System, batch_size: int, micro_batches: int) -> dict:
        """Runs the system once, unless this key has been measured; its Result as a dictionary."""
        if key not in self.runs:
            self.runs[key] = self._run(system, batch_size, micro_batches)
            kept = self.path.with_suffix(".new")
            kept.write_text(json.dumps({"settings": self.settings, "runs": self.runs}, indent=1) + "\n")
            kept.replace(self.path)
            speed = self.runs[key]["images_per_s"]
            outcome = f"{speed:.0f} images/s" if speed else f"not possible: {self.runs[key]['not_possible']}"
            print(f"{key}: {outcome}", flush=True)
        return self.runs[key]

    def _run(self, system: System, batch_size: int, micro_batches: int) -> dict:
        options, world_size = self.options, system.world_size(self.options.workers)
        with tempfile.TemporaryDirectory() as scratch:
            out, config_path = Path(scratch) / "out", Path(scratch) / "config.yaml"
            config_path.write_text(yaml.safe_dump(configuration(options, batch_size).to_dict()))
            # Whole turns of all parts in an alternate run, behind the epoch that is left out.
            epochs = 1 + options.workers if system.program == "alternate" else 3
            started = command(
                system,
                config_path,
                out,
                num_steps(options, batch_size),
                WARMUP,
                micro_batches=micro_batches,
                epochs=epochs,
            )
            threads = os.cpu_count() if system.family == "single" else 1
            try:
                launch(system, started, out, world_size, threads, options.timeout)
            except LaunchError as error:
                reason = str(error).strip().splitlines()[-1]
                print(error, flush=True)
                return {"images_per_s": None, "not_possible": reason, "micro_batches": micro_batches}
            result = dataclasses.asdict(read(system, out, world_size))
        return {**result, "micro_batches": micro_batches if system.family == "pipeline" else None}


def sweep(measurements: Measurements, batch_size: int) -> dict[str, int]:
    """The fastest number of micro-batches for each pipeline schedule; the compressed ones take the same."""
    best = {}
    chosen = [SYSTEMS[name] for name in measurements.options.systems if SYSTEMS[name].family == "pipeline"]
    for program in dict.fromkeys(system.program for system in chosen):
        speeds = {}
        for micro_batches in MICRO_BATCHES:
            key = f"batch {batch_size}/sweep/{program}/{micro_batches} micro-batches"
            measured = measurements.measure(key, SYSTEMS[program], batch_size, micro_batches)
            speeds[micro_batches] = measured["images_per_s"] or 0.0
        best[program] = max(speeds, key=speeds.get)
    return best


def summarize(runs: list[dict], reference: list[dict]) -> dict:
    """Medians over the rounds; ratios within each round, so that what slows a whole round down cancels out."""
    if any(run["images_per_s"] is None for run in runs):
        return {"not_possible": next(run["not_possible"] for run in runs if run["images_per_s"] is None)}
    speeds = [run["images_per_s"] for run in runs]
    per_epoch = EPOCH / runs[0]["images_per_epoch"]
    ratios = [run["images_per_s"] / other["images_per_s"] for run, other in zip(runs, reference)]
    interface = [(run["interface_bytes"] or {}).get("lo") for run in runs]
    return {
        "images_per_s": median(speeds),
        "lowest": min(speeds),
        "highest": max(speeds),
        "ratio": median(ratios),
        "sent_forward": runs[0]["sent_forward"] * per_epoch,
        "sent_backward": runs[0]["sent_backward"] * per_epoch,
        "interface": median(interface) * per_epoch if all(count is not None for count in interface) else None,
        "idle": _median_each([run["idle"] for run in runs]),
        "peak_memory": _median_each([run["peak_memory"] for run in runs]),
        "micro_batches": runs[0]["micro_batches"],
    }


def _median_each(values: list[list[float] | None]) -> list[float] | None:
    return [median(each) for each in zip(*values)] if all(values) else None


def tables(results: dict, options: argparse.Namespace, machine: dict) -> str:
    """results.md."""
    data = "images given by --data" if options.data else "embedded images"
    batches = " ".join(map(str, options.batch))
    lines = [
        "# One flow on several workers",
        "",
        f"`python -m benchmarks.pipelines.run --workers {options.workers} --batch {batches} --rounds {options.rounds} "
        f"--steps {options.steps}` on {in_words(machine)}; gloo over loopback, one thread a worker, device "
        f"{options.device}.",
        "",
        f"Small flow (3 blocks x 4 steps, width 64), {options.workers} workers, balanced cuts, Adam, {data}. Images/s: "
        f"median over {options.rounds} rounds (lowest to highest). MB = 1e6 bytes of all workers for {EPOCH} images; "
        "'back' is what is all-reduced for DDP and local SGD. At the interface: what loopback sent while it was measured, "
        "protocol included. Idle: 1 - time in forwards, backwards, updates and images, of each worker; of pipeflow the "
        "time its links waited. Memory: peak resident size of each worker up to the end of the measured part. An "
        "alternate run trains one part an epoch: its images/s are images seen. The zero-bubble schedules run without "
        "torch's split of the backward, which fails on this flow (torch_pipeline.py).",
    ]
    for batch_size, rows in results.items():
        lines += [
            "",
            f"## Batch {batch_size}",
            "",
            "| system | micro-batches | images/s | pipeflow concurrent = 1 | MB forward | MB back | MB at the interface "
            "| idle | peak memory, MB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(SYSTEMS[name].title, row) for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _row(title: str, row: dict) -> str:
    if "not_possible" in row:
        return f"| {title} | - | not possible: {row['not_possible']} | - | - | - | - | - | - |"
    idle = " ".join(f"{share:.0%}" for share in row["idle"]) if row["idle"] else "-"
    memory = " ".join(f"{num_bytes / 1e6:.0f}" for num_bytes in row["peak_memory"]) if row["peak_memory"] else "-"
    interface = f"{row['interface'] / 1e6:.1f}" if row["interface"] is not None else "-"
    return (
        f"| {title} | {row['micro_batches'] or '-'} | {row['images_per_s']:.0f} ({row['lowest']:.0f} to "
        f"{row['highest']:.0f}) | {row['ratio']:.2f} | {row['sent_forward'] / 1e6:.1f} | {row['sent_backward'] / 1e6:.1f} "
        f"| {interface} | {idle} | {memory} |"
    )


def main() -> None:
    """Measures what is not measured yet and writes the results."""
    options = parse_arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    measurements, results = Measurements(options), {}
    best = {batch_size: sweep(measurements, batch_size) for batch_size in options.batch}
    for number in range(options.rounds):
        for batch_size in options.batch:
            for name in options.systems:
                key = f"batch {batch_size}/round {number}/{name}"
                measurements.measure(key, SYSTEMS[name], batch_size, best[batch_size].get(SYSTEMS[name].program, 0))
    for batch_size in options.batch:
        rounds = {
            name: [measurements.runs[f"batch {batch_size}/round {number}/{name}"] for number in range(options.rounds)]
            for name in options.systems
        }
        results[batch_size] = {name: summarize(runs, rounds[REFERENCE]) for name, runs in rounds.items()}
    machine = describe_machine()
    command = command_line("benchmarks.pipelines.run")
    kept = {
        "machine": machine,
        "command": command,
        "settings": measurements.settings,
        "results": results,
        "runs": measurements.runs,
    }
    (options.results / "results.json").write_text(json.dumps(kept, indent=1) + "\n")
    (options.results / "results.md").write_text(tables(results, options, machine))
    measurements.path.unlink()


if __name__ == "__main__":
    main()
