"""How fast pipeflow and its rivals train between hosts that are joined by slow links.

    python -m benchmarks.links.run

Needs root and Linux: each worker is a process in a 'host' of its own (hosts.py), and what goes between two hosts passes
a link with the rate, in Mbit/s, and the delay, in milliseconds one way, that the table says. For each rate every system
trains the same small flow, and is measured once it is warm: images/s, bytes on the wire beside those it counts itself, and
which share of its own speed over unlimited links is left.

A finished measurement is saved at once: the same command goes on where an earlier one was cut off. Writes results.json,
results.md and the figures into --out. `--report` writes the latter two anew from results.json.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.links.check import check_links, link_in_words
from benchmarks.links.hosts import clean, make_hosts
from benchmarks.links.namespaces import HostsError
from benchmarks.links.processes import bytes_between, run_in_hosts
from benchmarks.links.report import write_report
from benchmarks.links.systems import PIPEFLOW, RIVALS, System, make_systems
from benchmarks.machine import command_line
from benchmarks.results_file import ResultsFile

HERE = Path(__file__).parent
WARMUP, MIN_STEPS, MIN_STEPS_PIPEFLOW, MAX_STEPS = 3, 4, 8, 60
"""Batches before a rival is measured; fewest and most that are measured. A pipe of pipeflow fills and empties once."""
RUN_LIMIT = 400.0
"""Seconds after which a run is given up."""
_LOOK_EVERY = 0.01

Rate = float | None


@dataclass(frozen=True)
class Job:
    """One measurement."""

    system: System
    rate: Rate
    delay: float
    batch: int
    round: int

    @property
    def key(self) -> str:
        """Its name in results.json."""
        rate = "none" if self.rate is None else f"{self.rate:g}"
        return f"{self.system.label} | rate {rate} | delay {self.delay:g} | batch {self.batch} | round {self.round}"


def make_jobs(arguments: argparse.Namespace) -> list[Job]:
    """All measurements, unlimited links first: later ones take their length from them."""
    systems = make_systems(arguments.systems, arguments.micro_batches)
    delayed = [(rate, delay) for delay in arguments.delays if delay > 0 for rate in arguments.delay_rates]
    still = [*arguments.rates, *(rate for rate, _ in delayed)]
    links = [*dict.fromkeys((rate, 0.0) for rate in still), *delayed]
    links.sort(key=lambda link: link != (None, 0.0))
    return [
        Job(system, rate, delay, batch, number)
        for number in range(arguments.rounds)
        for batch in arguments.batch
        for rate, delay in links
        for system in systems
    ]


def configuration(job: Job, steps: int, num_workers: int, base: dict) -> dict:
    """Sections of options of one run: what the run needs, over `base`, over the small flow."""
    small = {
        "run": {"device": "cpu", "figures": False},
        "model": {"num_steps": 4, "width": 64},
        "parts": {"split": "balanced", "num": num_workers},
        "optim": {"batch_size": job.batch, "lr": 1e-4},
    }
    needed = {**job.system.settings(steps, job.batch, num_workers), "optim": {"batch_size": job.batch}}
    names = {*small, *base, *needed}
    return {name: {**small.get(name, {}), **base.get(name, {}), **needed.get(name, {})} for name in sorted(names)}


def choose_steps(job: Job, results: dict, seconds: float) -> int:
    """So many batches that measuring takes about `seconds`, from the same system's speed and bytes without a limit.

    Few are enough where the link is what takes the time: an epoch of pipeflow ends when all its latents have arrived and
    been used, so what waits in queues is not a gain, and the pipe's filling is short beside the sending of one batch.
    """
    free = [
        each
        for each in results["runs"].values()
        if (each["label"], each["rate"], each["delay"], each["batch"]) == (job.system.label, None, 0.0, job.batch)
    ]
    if not free:
        a_step = job.batch / 400  # of a small flow on a few cores; the first round finds out
    else:
        a_step = job.batch / free[0]["images_per_s"]
        if job.rate is not None:
            a_step += max(free[0]["sent"]) / free[0]["steps"] * 8 / (job.rate * 1e6)
        if not job.system.is_pipeflow:  # there and back, once and again for what is not overlapped
            a_step += 4 * job.delay / 1000
    fewest = MIN_STEPS_PIPEFLOW if job.system.is_pipeflow else MIN_STEPS
    return max(fewest, min(MAX_STEPS, round(seconds / a_step)))


def measure(job: Job, steps: int, num_workers: int, base: dict) -> dict:
    """Runs a system once. Raises RuntimeError where it ends with an error, or not in time."""
    with tempfile.TemporaryDirectory() as scratch, make_hosts(num_workers, job.rate, job.delay) as hosts:
        folder = Path(scratch)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(job, steps, num_workers, base)))
        command = job.system.command(config, steps, WARMUP, folder)
        samples, begun_at = run_in_hosts(
            hosts, command, folder, RUN_LIMIT, _LOOK_EVERY, lambda: job.system.has_begun(folder, num_workers)
        )
        result = job.system.read(folder, num_workers)
    began = begun_at if begun_at is not None else result["began"]
    sent, received = bytes_between(samples, began, began + result["seconds"])
    return {
        "label": job.system.label,
        "system": job.system.name,
        "pipeflow": job.system.is_pipeflow,
        "micro_batches": job.system.micro_batches,
        "rate": job.rate,
        "delay": job.delay,
        "batch": job.batch,
        "round": job.round,
        "steps": result["images"] // job.batch,
        "seconds": result["seconds"],
        "images_per_s": result["images"] / result["seconds"],
        "payload": result["payload"],
        "sent": sent,
        "received": received,
    }


def _check_all_links(jobs: Sequence[Job], results: ResultsFile) -> Iterator[str]:
    for rate, delay in dict.fromkeys((job.rate, job.delay) for job in jobs):
        key = f"{'none' if rate is None else f'{rate:g}'} | {delay:g}"
        if key not in results.values["links"]:
            check = check_links(rate, delay)
            results.add("links", key, check)
            yield link_in_words(check)


def _rate(text: str) -> Rate:
    return None if text == "none" else float(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [None, 1000.0, 100.0, 20.0, 5.0]
    parser.add_argument("--rates", nargs="+", type=_rate, default=default, help="Mbit/s, or none for no limit")
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 512], help="images in a batch")
    parser.add_argument("--delays", nargs="+", type=float, default=[0.0, 100.0], help="milliseconds one way")
    parser.add_argument("--delay-rates", nargs="+", type=_rate, default=[100.0], help="rates at which delays are tried")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each, one after all others")
    parser.add_argument(
        "--systems",
        nargs="+",
        metavar="NAME",
        default=[PIPEFLOW, RIVALS],
        help=f"{PIPEFLOW}, {RIVALS}, or names of lines",
    )
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[2, 4, 8, 16], help="of GPipe and 1F1B")
    parser.add_argument("--workers", type=int, default=2, help="hosts, and parts of the flow")
    parser.add_argument("--seconds", type=float, default=12.0, help="that measuring one run takes, about")
    parser.add_argument("--config", type=Path, help="YAML file of pipeflow options over the small flow's")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results and figures")
    parser.add_argument("--report", action="store_true", help="only write tables and figures from results.json anew")
    return parser.parse_args(arguments)


def main() -> int:
    """Measures what is not yet measured, and writes the report."""
    arguments = parse()
    try:
        base = yaml.safe_load(arguments.config.read_text()) if arguments.config else {}
        arguments.out.mkdir(parents=True, exist_ok=True)
        settings = {"workers": arguments.workers, "config": base, "seconds": arguments.seconds}
        results = ResultsFile(
            arguments.out / "results.json", command_line("benchmarks.links.run"), settings, ("links", "runs")
        )
        failed = [] if arguments.report else measure_all(make_jobs(arguments), results, arguments, base)
        write_report(results.values, arguments.out)
    except (HostsError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


def measure_all(jobs: list[Job], results: ResultsFile, arguments: argparse.Namespace, base: dict) -> list[Job]:
    """Every job that results.json does not have; those that failed, which have been said."""
    clean()
    for line in _check_all_links(jobs, results):
        print(line, flush=True)
    missing = [job for job in jobs if job.key not in results.values["runs"]]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} measurements are there", flush=True)
    failed = []
    for job in missing:
        steps = choose_steps(job, results.values, arguments.seconds)
        began = time.time()
        try:
            run = measure(job, steps, arguments.workers, base)
        except RuntimeError as error:
            failed.append(job)
            print(f"{job.key}: FAILED: {error}", file=sys.stderr, flush=True)
            continue
        results.add("runs", job.key, {**run, "wall_seconds": time.time() - began})
        print(
            f"{job.key}: {run['images_per_s']:.1f} images/s over {run['steps']} batches, payload {run['payload']}, "
            f"sent {run['sent']}, {time.time() - began:.0f} s in all",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
