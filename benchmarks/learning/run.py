"""Do parts need end-to-end epochs, and which head, rate and number of parts is best?

    python -m benchmarks.learning.run --data cifar10.zip [--studies heads] [--jobs 2]

For each arm of runs.yaml: one seed at every rate, and at rates beyond them until the best is not the first or the last;
then all seeds at the best. Where an arm has the rate of another, only that. Runs go to RUNS and resume; a rate at which
training is stopped counts as the worst. Writes results.md and results.json beside this file after each step.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from benchmarks.learning.gradients import cosines
from benchmarks.learning.report import run_key, runs_of, write_report
from benchmarks.learning.studies import Study, read_studies
from benchmarks.machine import command_line
from benchmarks.results_file import ResultsFile
from pipeflow.data.sources import load_data
from pipeflow.errors import PipeflowError
from pipeflow.rundir.reading import read_config
from pipeflow.sweep.command import sweep

HERE = Path(__file__).parent
FASTEST, SLOWEST = 0.128, 1e-4
"""Rates beyond which none is tried."""
IMAGES = 256
"""Test images that gradients are compared on."""
KEPT = ("test_bpd", "exit_bpd", "train_macs", "bytes", "parts")
"""What results.json takes of a run's summary."""


class Runs:
    """The runs of a study, in its folder and in results.json."""

    def __init__(self, study: Study, results: ResultsFile, options: argparse.Namespace):
        self.study = study
        self.arms = {arm.name: arm for arm in study.arms}
        self._results, self._options = results, options
        self._images: Tensor | None = None
        self._overrides = {"data.name": "images", "data.path": options.data} if options.data else {}

    def found(self, arm: str, rate: float, seed: int) -> dict[str, Any] | None:
        """What is known of a run."""
        return self._results.values["runs"].get(run_key(arm, rate, seed))

    def train(self, wanted: Sequence[tuple[str, float, int]]) -> None:
        """Trains those that are not known yet, all of a seed in one sweep."""
        missing = [each for each in wanted if self.found(*each) is None]
        by_seed: dict[int, dict[str, dict]] = {}
        for arm, rate, seed in missing:
            options = {"options": self.arms[arm].at_rate(rate), "seeds": [seed]}
            by_seed.setdefault(seed, {})[f"{arm}, lr {rate:g}"] = options
        out = self._options.runs
        out.mkdir(parents=True, exist_ok=True)
        for seed, some in by_seed.items():
            path = out / f"seed{seed}.yaml"
            path.write_text(yaml.safe_dump({"arms": some}, sort_keys=False))
            try:
                sweep(path, self._options.jobs, self._overrides, str(out))
            finally:  # of a sweep that is stopped too: what has ended is there
                entries = json.loads((out / "sweep.json").read_text()) if (out / "sweep.json").exists() else []
                keys = {f"{arm}, lr {rate:g}": run_key(arm, rate, seed) for arm, rate, its in missing if its == seed}
                for entry in entries:
                    if entry["arm"] in keys:
                        self._keep(keys[entry["arm"]], entry, out)

    def _keep(self, key: str, entry: Mapping[str, Any], folder: Path) -> None:
        if entry["ended"]:
            run = {name: entry[name] for name in KEPT}
            self._results.add("runs", key, {**run, "cosines": self._cosines(folder / entry["name"])})
        elif "error" in entry:
            self._results.add("runs", key, {"error": entry["error"]})

    def _cosines(self, run: Path) -> dict[str, list[float]]:
        """Of the gradients at each checkpoint of local epochs, by the epochs that are done."""
        if self._images is None:
            self._images = load_data(read_config(run).data).test[:IMAGES]
        found = {path.name: cosines(path, self._images) for path in sorted(run.glob("checkpoints/epoch-??????"))}
        return {name.removeprefix("epoch-").lstrip("0"): each for name, each in found.items() if each is not None}

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
    parser.add_argument("--jobs", type=int, help="runs at a time; default: a core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders go")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    options = parser.parse_args(words)
    document = yaml.safe_load(options.file.read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    command = command_line("benchmarks.learning.run", ["--data", "cifar10.zip"])
    settings = {"options": document["options"], "data": bool(options.data)}
    try:
        studies = read_studies(document)
        results = ResultsFile(options.out / "results.json", command, settings, ["runs"])
        for study in studies:
            if options.studies is None or study.name in options.studies:
                for _ in steps(Runs(study, results, options), document["rates"], document["seeds"]):
                    write_report(results.values, studies, document["seeds"], options.out)
    except (PipeflowError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
