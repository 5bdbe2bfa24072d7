"""How long does a whole run take, local and end-to-end epochs together, and where does it end?

    python -m benchmarks.whole_run.run --data cifar10.zip [--only pipeflow_pipeline gpipe] [--rate 100] [--estimate]

Each worker is a process in a network namespace (../links/hosts.py), so it needs root and Linux. In this order: probes this
machine, lets the planner choose pipeflow's settings for each rate, finds the best number of micro-batches of each rival
pipeline in a few batches, and trains each system from its first batch to its last. Each of these is kept in results.json
at once, and the same command goes on where it stopped. Without a limit there are `--unlimited-workers`, a core each.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.links.hosts import clean, make_hosts
from benchmarks.links.namespaces import HostsError
from benchmarks.links.processes import run_in_hosts
from benchmarks.links.run import Job as Burst
from benchmarks.links.run import measure as measure_burst
from benchmarks.links.systems import Rival
from benchmarks.machine import command_line
from benchmarks.results_file import ResultsFile
from benchmarks.whole_run.choose import Planner, at_rate
from benchmarks.whole_run.report import rate_name, write_report
from benchmarks.whole_run.systems import ONE, SYSTEMS, Setting, System, read_run, worker_command
from pipeflow.config import Config
from pipeflow.plan.plan import SMALL_IMAGE
from pipeflow.plan.predict.machines import read_machines, write_machines
from pipeflow.plan.predict.probe import probe
from pipeflow.units import seconds_text

HERE = Path(__file__).parent
PROGRAM = "benchmarks.whole_run.run"
SETTINGS = ("workers", "unlimited_workers", "local", "finetune", "num_train", "num_test", "seed", "micro_batches")
"""Options of the command line that all rows of one results.json share."""
KINDS = ("machines", "choices", "sweeps", "rows")
BURST_STEPS = 6
"""Batches in which a number of micro-batches is tried, behind those that warm up."""
_LOOK_EVERY = 0.2
_START_SECONDS = 25.0
"""About what a run needs beside its training: starting, loading images, the evaluation."""

Rate = float | None


@dataclass(frozen=True)
class Job:
    """One whole run."""

    system: System
    rate: Rate
    round: int

    @property
    def key(self) -> str:
        """Its name in results.json; one worker has no links."""
        rate = "" if self.system.name == ONE else f" | rate {rate_name(self.rate)}"
        return f"{self.system.name}{rate} | round {self.round}"


def make_jobs(options: argparse.Namespace) -> list[Job]:
    """All runs in turn, so that what slows the machine down for a while does not hit one system alone."""
    jobs = {}
    for number in range(options.rounds):
        for rate in options.rate:
            for name in options.only:
                job = Job(SYSTEMS[name], rate, number)
                jobs.setdefault(job.key, job)
    return list(jobs.values())


class Benchmark:
    """The measurements of one command."""

    def __init__(self, options: argparse.Namespace):
        """Reads what is there already, also the configuration to be put over the small flow's."""
        self.options = options
        self._over = yaml.safe_load(options.config.read_text()) if options.config else {}
        settings = {name: getattr(options, name) for name in SETTINGS}
        settings |= {"data": options.data.name if options.data else None, "config": self._over}
        self.results = ResultsFile(options.out / "results.json", _whole_command(options), settings, KINDS)
        self._planners: dict[Rate, Planner] = {}

    def workers(self, rate: Rate) -> int:
        """Workers at a rate."""
        return self.options.unlimited_workers if rate is None else self.options.workers

    def configuration(self, workers: int, is_planned: bool = False) -> Config:
        """The options that all systems share. is_planned: with drawn images instead of files, so that it can be told on."""
        options = self.options
        images = {} if options.data is None or is_planned else {"name": "images", "path": str(options.data)}
        sections: dict = {
            "run": {"device": "cpu", "figures": False, "seed": options.seed},
            "data": {**images, "num_train": options.num_train, "num_test": options.num_test},
            "model": {"num_blocks": 3, "num_steps": 4, "width": 64},
            "parts": {"split": "balanced", "num": workers},
            "schedule": {"mode": "concurrent", "local_epochs": options.local, "finetune_epochs": options.finetune},
            "optim": {"batch_size": 64, "lr": 1e-3},
            "eval": {"every_epochs": 1000, "num_images": min(64, options.num_test)},
            "checkpoint": {"every_epochs": 1000},
        }
        names = {*sections, *self._over}
        return Config.from_dict({name: {**sections.get(name, {}), **self._over.get(name, {})} for name in names})

    def planner(self, rate: Rate) -> Planner:
        """The planner for a rate, on workers that are probed now if they have not been."""
        if rate not in self._planners:
            workers, known = self.workers(rate), self.results.values["machines"]
            config = self.configuration(workers, is_planned=True)
            if str(workers) not in known:
                print(f"probing {workers} workers", flush=True)
                machines = probe(config, SMALL_IMAGE, workers, threads=1, seconds=self.options.probe_seconds)
                write_machines(machines, self.options.out / f"machines_{workers}.yaml")
                (self.options.out / f"config_{workers}.yaml").write_text(yaml.safe_dump(config.to_dict()))
                self.results.add("machines", str(workers), machines.to_dict())
            machines = read_machines(None, known[str(workers)])
            self._planners[rate] = Planner(config, at_rate(machines, rate), self.options.micro_batches)
        return self._planners[rate]

    def choose(self, rate: Rate) -> dict[str, dict]:
        """The planner's choice for each row by parts at a rate, with predicted seconds."""
        key = rate_name(rate)
        if key not in self.results.values["choices"]:
            chosen = {name: self.planner(rate).choose(system) for name, system in SYSTEMS.items() if system.is_ours}
            found = {
                name: {"options": setting.options, "predicted": seconds} for name, (setting, seconds) in chosen.items()
            }
            best = min(found, key=lambda name: found[name]["predicted"])
            self.results.add("choices", key, {"rows": found, "best": best})
            print(f"{key}: the planner chooses {best}", flush=True)
            for name, each in found.items():
                print(f"    {name}: {seconds_text(each['predicted'])}, {each['options']}", flush=True)
            link = "" if rate is None else f" --link '{rate:g} Mbit/s'"
            files = f"--config config_{self.workers(rate)}.yaml --machines machines_{self.workers(rate)}.yaml"
            print(
                f"    in {self.options.out}: pipeflow plan {files}{link} --json -, with the options above", flush=True
            )
        return self.results.values["choices"][key]["rows"]

    def sweep(self, schedule: str, rate: Rate) -> int:
        """The number of micro-batches at which a rival pipeline is fastest in a few batches."""
        key, workers = f"{schedule} | rate {rate_name(rate)}", self.workers(rate)
        if key not in self.results.values["sweeps"]:
            config = self.configuration(workers, is_planned=True)
            base = {name: values for name, values in config.to_dict().items() if name not in ("data", "schedule")}
            speeds = {}
            for num in self.options.micro_batches:
                if schedule == "gpipe" or num >= workers:  # torch's 1F1B needs a micro-batch for each stage
                    burst = Burst(Rival(schedule, num, system=schedule), rate, 0.0, config.optim.batch_size, 0)
                    speeds[str(num)] = measure_burst(burst, BURST_STEPS, workers, base)["images_per_s"]
            self.results.add("sweeps", key, speeds)
            print(f"{key}: images/s by micro-batches {speeds}", flush=True)
        speeds = self.results.values["sweeps"][key]
        return int(max(speeds, key=speeds.get))

    def prepare(self, job: Job) -> tuple[Setting, float | None]:
        """The setting of a run and its predicted seconds, both fixed before it is measured."""
        if job.system.is_ours:
            chosen = self.choose(job.rate)[job.system.name]
            return Setting(chosen["options"]), chosen["predicted"]
        setting = Setting()
        if job.system.is_pipeline:
            setting = Setting({"micro_batches": self.sweep(job.system.schedule, job.rate)})
        return setting, self.planner(job.rate).predict(job.system, setting)

    def measure(self, job: Job) -> dict:
        """Trains from the first batch to the last. Raises RuntimeError where that ends with an error, or not in time."""
        setting, predicted = self.prepare(job)
        workers = job.system.world_size(self.workers(job.rate))
        config, began = self.configuration(self.workers(job.rate)), time.time()
        with tempfile.TemporaryDirectory() as scratch, make_hosts(workers, job.rate) as hosts:
            folder, path = Path(scratch), Path(scratch) / "config.yaml"
            path.write_text(yaml.safe_dump(config.to_dict()))
            command = worker_command(job.system, setting, config, path, folder)
            samples, _ = run_in_hosts(hosts, command, folder, self.options.limit, _LOOK_EVERY)
            found = read_run(job.system, folder, workers)
        return {
            "system": job.system.name,
            "rate": rate_name(job.rate),
            "round": job.round,
            "workers": workers,
            "options": setting.options,
            "predicted": predicted,
            **found,
            "wire": samples[-1][1],
            "wall_seconds": time.time() - began,
        }

    def expected(self, job: Job) -> float:
        """About the seconds of a run's training; a pipeline that was not tried yet is taken at its best."""
        if job.system.is_ours:
            return self.choose(job.rate)[job.system.name]["predicted"]
        return self.planner(job.rate).estimate(job.system)

    def estimates(self, jobs: Sequence[Job]) -> Iterator[str]:
        """A line for each run that is not measured yet: about how long it takes."""
        total = 0.0
        for job in jobs:
            seconds = _START_SECONDS + self.expected(job)
            total += seconds
            yield f"{job.key}: about {seconds_text(seconds)}"
        yield f"{len(jobs)} runs: about {seconds_text(total)}"

    def run(self) -> list[Job]:
        """Every run that results.json does not have; those that failed, which have been said."""
        clean()
        rows, failed = self.results.values["rows"], []
        jobs = make_jobs(self.options)
        missing = [job for job in jobs if job.key not in rows]
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are there", flush=True)
        for rate in self.options.rate:
            self.choose(rate)
        for line in self.estimates(missing):
            print(line, flush=True)
        for job in [] if self.options.estimate else missing:
            try:
                row = self.measure(job)
            except RuntimeError as error:
                failed.append(job)
                print(f"{job.key}: FAILED: {error}", file=sys.stderr, flush=True)
                continue
            self.results.add("rows", job.key, row)
            write_report(self.results.values, self.options.out)
            print(
                f"{job.key}: {row['seconds']:.1f} s, {row['test_bpd']:.4f} bits/dim, {row['wall_seconds']:.0f} s in all",
                flush=True,
            )
        return failed


def _whole_command(options: argparse.Namespace) -> str:
    """The command that measures all rows, however many commands it took; files are named without their folders."""
    defaults, words = parse([]), []
    for name in ("data", "config", *SETTINGS):
        value = getattr(options, name)
        if value != getattr(defaults, name):
            listed = value if isinstance(value, list) else [value.name if isinstance(value, Path) else value]
            words += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return command_line(PROGRAM, words)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="zip or folder of images as train/ and test/; else images are drawn")
    parser.add_argument(
        "--only", nargs="+", metavar="SYSTEM", choices=SYSTEMS, default=[*SYSTEMS], help=", ".join(SYSTEMS)
    )
    rates = [None, 1000.0, 100.0, 20.0]
    parser.add_argument("--rate", nargs="+", type=_rate, default=rates, help="Mbit/s of the links, or none: no limit")
    parser.add_argument("--rounds", type=int, default=1, help="whole runs of each, one after all others")
    parser.add_argument("--local", type=int, default=4, help="local epochs; rivals train as many end to end")
    parser.add_argument("--finetune", type=int, default=2, help="end-to-end epochs behind them")
    parser.add_argument("--num-train", type=int, default=4992, help="images in an epoch")
    parser.add_argument("--num-test", type=int, default=2000, help="images that bits/dim are of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=3, help="hosts, and parts of the flow")
    parser.add_argument("--unlimited-workers", type=int, default=2, help="the same where the links have no limit")
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[2, 4, 8], help="of pipelines, to choose from")
    parser.add_argument(
        "--config", type=Path, help="YAML file of pipeflow options over the small flow's, for all systems"
    )
    parser.add_argument("--probe-seconds", type=float, default=20.0, help="of each part of the planner's probe")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a run is given up")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results")
    parser.add_argument(
        "--estimate", action="store_true", help="choose, and say how long each run takes; train nothing"
    )
    parser.add_argument("--report", action="store_true", help="only write results.md from results.json anew")
    return parser.parse_args(words)


def _rate(text: str) -> Rate:
    return None if text == "none" else float(text)


def main(words: Sequence[str] | None = None) -> int:
    """Measures what is not measured yet, and writes the report."""
    options = parse(words)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        benchmark = Benchmark(options)
        failed = [] if options.report else benchmark.run()
        write_report(benchmark.results.values, options.out)
    except (HostsError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
