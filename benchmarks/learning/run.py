"""Do parts need end-to-end epochs, and which head, rate and number of parts is best?

    python -m benchmarks.learning.run --data cifar10.zip [--studies heads] [--jobs 2]
    python -m benchmarks.learning.run --data cifar10.zip --device cuda --jobs 12       # so many runs share the GPU

For each arm of runs.yaml: one seed at every rate, and at rates beyond them until the best is not the first or the last;
then all seeds at the best. Where an arm has the rate of another, only that. Runs go to RUNS and resume; a rate at which
training is stopped counts as the worst. Writes results.md and results.json beside this file after each step, and when it
is stopped (Ctrl-C, SIGTERM), with the runs that have ended by then. The gradients are compared at the end. An arm that
was changed since its runs is an error: take those out of results.json, or choose another --out.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.learning.gradients import cosines
from benchmarks.learning.report import write_report
from benchmarks.learning.rows import best_rate, run_key, runs_of
from benchmarks.learning.studies import Study, read_document, read_studies
from benchmarks.machine import command_line, describe_machine
from benchmarks.results_file import ResultsFile
from pipeflow.data.sources import load_data
from pipeflow.errors import PipeflowError
from pipeflow.rundir.reading import read_config, read_run
from pipeflow.sweep.command import sweep

HERE = Path(__file__).parent
FASTEST, SLOWEST = 0.128, 1e-4
"""Rates beyond which none is tried."""
IMAGES = 256
"""Test images that gradients are compared on."""
DIVERGED = "stopped all workers"
"""In the error of a run whose loss went beyond all bounds. Any other error ends the study."""
KEPT = ("test_bpd", "exit_bpd", "train_macs", "bytes", "parts")
"""What results.json takes of a run's summary."""


class Runs:
    """The runs of a study, in its folder and in results.json."""

    def __init__(self, study: Study, results: ResultsFile, options: argparse.Namespace):
        self.study = study
        self.arms = {arm.name: arm for arm in study.arms}
        self._results, self._options = results, options
        self._check_arms()
        self._overrides = {"data.name": "images", "data.path": options.data} if options.data else {}
        machine, first = describe_machine(), results.values["machine"]
        machines = self._results.values.setdefault("machines", {first["cpu"]: first})
        self._machine, sets = machine["gpu" if options.device == "cuda" else "cpu"], machine["instruction_sets"]
        if machines.setdefault(self._machine, machine)["instruction_sets"] != sets:  # another one of the same name
            self._machine = f"{self._machine} ({sets})"
            machines.setdefault(self._machine, machine)

    def _check_arms(self) -> None:
        """Notes what the arms are; ValueError where one is not what its runs were made with."""
        described = self._results.values.setdefault("arms", {})
        measured = {key.rsplit(" | ", 2)[0] for key in self._results.values["runs"]}
        for arm in self.study.arms:
            before, now = described.get(arm.name), arm.described()
            if arm.name in measured and before != now:
                raise ValueError(
                    f"arm {arm.name!r} was measured with {before}, now it has {now}: choose another --out, or take its "
                    f"runs out of {self._results.path}"
                )
            described[arm.name] = now

    def found(self, arm: str, rate: float, seed: int) -> dict[str, Any] | None:
        """What is known of a run."""
        return self._results.values["runs"].get(run_key(arm, rate, seed))

    def train(self, wanted: Sequence[tuple[str, float, int]]) -> None:
        """Trains those that are not known yet, in their order, all in one sweep. Raises ValueError where one fails."""
        missing = [each for each in dict.fromkeys(wanted) if self.found(*each) is None]
        if not missing:
            return
        arms: dict[str, dict[str, Any]] = {}
        for arm, rate, seed in missing:
            options = {**self.arms[arm].at_rate(rate), "run.device": self._options.device}
            arms.setdefault(f"{arm}, lr {rate:g}", {"options": options, "seeds": []})["seeds"].append(seed)
        out = self._options.runs
        out.mkdir(parents=True, exist_ok=True)
        path = out / "runs.yaml"
        path.write_text(yaml.safe_dump({"arms": arms}, sort_keys=False))
        try:
            sweep(path, self._options.jobs, self._overrides, str(out))
        finally:  # of a sweep that is stopped too: what has ended is there
            entries = json.loads((out / "sweep.json").read_text()) if (out / "sweep.json").exists() else []
            found = {(entry["arm"], entry["options"]["run.seed"]): entry for entry in entries}
            for arm, rate, seed in missing:
                self._keep(run_key(arm, rate, seed), found.get((f"{arm}, lr {rate:g}", seed), {}))
        for each in missing:
            if self.found(*each) is None:
                error = found.get((f"{each[0]}, lr {each[1]:g}", each[2]), {}).get("error", "has not been trained anew")
                raise ValueError(f"{run_key(*each)}: {error}. Its folder is in {out}; --runs gives another one.")

    def _keep(self, key: str, entry: Mapping[str, Any]) -> None:
        if entry.get("ended"):
            summary = read_run(self._options.runs / entry["name"]).summary.to_json()
            run = {name: summary[name] for name in KEPT}
            self._results.add("runs", key, {**run, "folder": entry["name"], "machine": self._machine})
        elif DIVERGED in entry.get("error", ""):
            self._results.add("runs", key, {"error": entry["error"]})

    def compare_gradients(self, seed: int) -> None:
        """Adds the cosines at each checkpoint of local epochs, by the epochs that are done, to each arm's best run."""
        images: Tensor | None = None
        for arm in self.study.arms:
            rate = best_rate(self._results.values["runs"], arm.name, seed)
            run = None if rate is None else self.found(arm.name, rate, seed)
            folder = self._options.runs / run.get("folder", "") if run else Path()
            if rate is None or run is None or "cosines" in run or not (folder / "checkpoints").is_dir():
                continue
            if images is None:
                images = load_data(read_config(folder).data).test[:IMAGES]
            found = {path.name: cosines(path, images) for path in sorted(folder.glob("checkpoints/epoch-??????"))}
            by_epoch = {
                name.removeprefix("epoch-").lstrip("0"): each for name, each in found.items() if each is not None
            }
            self._results.add("runs", run_key(arm.name, rate, seed), {**run, "cosines": by_epoch})

    def rates(self, arm: str, seed: int) -> dict[float, float]:
        """Bits/dim of the arm's runs with this seed, by rate; infinite where training was stopped."""
        there = runs_of(self._results.values["runs"], arm, seed)
        return {rate: run.get("test_bpd", float("inf")) for rate, run in there.items()}


def next_rates(known: Mapping[float, float]) -> list[float]:
    """The rates to try beside those that are known, with their bits/dim, where the best is the first or the last."""
    best = min(known, key=known.__getitem__)
    if best == max(known) and 2 * best <= FASTEST:
        return [2 * best]
    if best == min(known) and best / 2 >= SLOWEST:
        return [best / 2]
    return []


def steps(runs: Runs, rates: Sequence[float], seeds: Sequence[int]) -> Iterator[None]:
    """Everything that a study trains; after each step there is something to report."""
    first, tried = seeds[0], {arm.name: list(rates) for arm in runs.study.arms if arm.rate_of is None}
    while any(tried.values()):
        runs.train([(arm, rate, first) for arm, its_rates in tried.items() for rate in its_rates])
        yield
        tried = {arm: next_rates(runs.rates(arm, first)) for arm in tried}
    wanted = []
    for arm in runs.study.arms:
        known = runs.rates(arm.rate_of or arm.name, first)
        if not known:
            raise ValueError(
                f"arm {arm.name!r} takes the rate of {arm.rate_of!r}, which has none yet: train its study first"
            )
        wanted += [(arm.name, min(known, key=known.__getitem__), seed) for seed in seeds]
    runs.train(sorted(wanted, key=lambda each: each[2]))
    yield


def main(words: Sequence[str] | None = None) -> int:
    """Trains what is not there yet, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="a zip or folder of images as train/ and test/; else embedded ones, which tell little"
    )
    parser.add_argument("--file", type=Path, default=HERE / "runs.yaml", help="the studies")
    parser.add_argument("--studies", nargs="+", help="names of those to train; default: all")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: a core each, or a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=Path, help="where the run folders go; default: runs/learning and the device")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    options = parser.parse_args(words)
    options.runs = options.runs or Path("runs/learning") / options.device
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch finds no GPU here.", file=sys.stderr)
        return 1
    data = Path(options.data).name if options.data else None
    command = command_line("benchmarks.learning.run", ["--data", data] if data else [])
    try:
        document = read_document(options.file)
        studies = read_studies(document)
        if unknown := {*(options.studies or ())} - {study.name for study in studies}:
            known = ", ".join(study.name for study in studies)
            raise ValueError(f"--studies {' '.join(sorted(unknown))}: {options.file} has no such study; it has {known}")
        options.out.mkdir(parents=True, exist_ok=True)
        results = ResultsFile(options.out / "results.json", command, {"data": data}, ["runs"])
        for study in studies:
            if options.studies is None or study.name in options.studies:
                runs = Runs(study, results, options)
                try:
                    for _ in steps(runs, document["rates"], document["seeds"]):
                        write_report(results.values, studies, document["seeds"], options.out)
                    runs.compare_gradients(document["seeds"][0])
                finally:
                    write_report(results.values, studies, document["seeds"], options.out)
    except KeyboardInterrupt:
        return 130  # the sweep has said what is saved
    except (PipeflowError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
