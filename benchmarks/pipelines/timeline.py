"""Timelines of two workers: a concurrent run of pipeflow above torch's 1F1B, on one scale.

    python -m benchmarks.pipelines.timeline [--batch 64] [--micro-batches 4] [--steps 3] [--out timeline.png]

Both train the small flow, balanced over two workers, under torchrun with one thread each, and are recorded once they run
evenly. Needs as many cores as workers: on fewer they take turns and every span is drawn out.
"""

import argparse
import json
import tempfile
from pathlib import Path

import yaml

from benchmarks.pipelines.gantt import draw
from benchmarks.pipelines.launch import launch
from benchmarks.pipelines.systems import SYSTEMS, command
from pipeflow.config import Config

HERE = Path(__file__).parent
WORKERS = 2
FIRST_STEP, RECORDED = 12, 28
"""A worker of pipeflow runs ahead of the next by what waits on their link: enough batches that there is a time when both
are recorded."""


def configuration(batch_size: int) -> dict:
    """A few more batches than are recorded."""
    return Config.from_dict(
        {
            "run": {"device": "cpu"},
            "data": {"num_train": (FIRST_STEP + RECORDED) * batch_size, "num_test": 64},
            "model": {"num_steps": 4, "width": 64},
            "parts": {"split": "balanced", "num": WORKERS},
            "optim": {"batch_size": batch_size, "lr": 1e-3},
            "eval": {"every_epochs": 100, "num_images": 64},
            "checkpoint": {"every_epochs": 100},
        }
    ).to_dict()


def record_pipeflow(config: Path, out: Path) -> list[list]:
    """Spans of a concurrent run, from the trace it leaves."""
    options = ("--timeline.steps", str(RECORDED), "--timeline.epoch", "0", "--timeline.first_step", str(FIRST_STEP))
    system = SYSTEMS["pipeflow_concurrent"]
    launch(system, command(system, config, out, FIRST_STEP, epochs=1, options=options), out, WORKERS, 1, 300)
    spans: list[list] = [[] for _ in range(WORKERS)]
    for event in json.loads((out / "run" / "timeline.json").read_text())["traceEvents"]:
        if event["ph"] == "X":
            spans[event["pid"]].append([event["cat"], event["name"], 1e3 * event["ts"], 1e3 * event["dur"]])
    return spans


def record_1f1b(config: Path, out: Path, steps: int, micro_batches: int) -> list[list]:
    """Computing spans of torch's schedule."""
    system = SYSTEMS["1f1b"]
    file = out / "spans.json"
    options = ("--timeline", str(file), "--timeline-steps", str(steps))
    started = command(system, config, out, steps, warmup=FIRST_STEP, micro_batches=micro_batches, options=options)
    launch(system, started, out, WORKERS, 1, 300)
    spans = []
    for rank in range(WORKERS):
        recorded = json.loads(file.with_suffix(f".rank{rank}.json").read_text())
        spans.append([_converted(**span) for span in recorded])
    return spans


def window(spans: list[list], length: float) -> list[list]:
    """Cuts out a stretch of this length, in nanoseconds, that begins when the last worker has begun."""
    begin = max(min(start for _, _, start, _ in worker) for worker in spans)
    cut = [
        [
            [kind, name, max(start, begin), min(start + duration, begin + length)]
            for kind, name, start, duration in worker
        ]
        for worker in spans
    ]
    return [[[kind, name, start, end - start] for kind, name, start, end in worker if end > start] for worker in cut]


def _converted(name: str, start: int, duration: int, **_) -> list:
    if name.startswith("images"):
        return ["load", name, start, duration]
    return ["compute", name if name.startswith("forward") else f"update {name}", start, duration]


def main() -> None:
    """Records both and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "timeline.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(options.batch)))
        ours = record_pipeflow(config, Path(scratch) / "pipeflow")
        theirs = record_1f1b(config, Path(scratch) / "1f1b", options.steps, options.micro_batches)
    ends = [start + duration for worker in theirs for _, _, start, duration in worker]
    length = max(ends) - min(start for worker in theirs for _, _, start, _ in worker)
    titles = (
        f"pipeflow, concurrent: the same time, batches of {options.batch}",
        f"torch 1F1B, {options.micro_batches} micro-batches: {options.steps} batches of {options.batch}",
    )
    draw(dict(zip(titles, (window(ours, length), theirs))), options.out)


if __name__ == "__main__":
    main()
