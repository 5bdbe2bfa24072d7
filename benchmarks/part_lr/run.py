"""Is there a best learning rate for each part? Searched part by part with Ray Tune, then tried where parts train together.

    python -m benchmarks.part_lr.run --data path/to/cifar10.zip --runs runs/part_lr

Writes results.md and results.json beside this file, for other numbers of images results_N.md and results_N.json.
"""

import argparse
import dataclasses
import json
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow import train
from pipeflow.config import Config, load
from pipeflow.ray.tune import search, start_ray

HERE = Path(__file__).parent
BASE = HERE.parents[1] / "configs" / "cifar10" / "small_sequential3.yaml"
TURN = 6
"""Epochs a part."""
OVERRIDES = {
    "schedule.local_epochs": str(3 * TURN),
    "schedule.finetune_epochs": "0",
    "optim.warmup_steps": "20",
    "eval.num_images": "500",
}
IMAGES = 3840
COMMON = 1e-3
"""The rate that the small configurations use for all parts."""


def main() -> None:
    """Searches, compares and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a zip or folder of images laid out as train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs/part_lr"), help="where the run folders go")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images")
    options = parser.parse_args()
    runs = options.runs.resolve()
    where = {"data.name": "images", "data.path": str(Path(options.data).resolve()), "run.dir": str(runs)}
    config = load(str(BASE), {**OVERRIDES, **where, "data.num_train": str(options.images)})
    start_ray()
    begin = time.perf_counter()
    found = search(config)
    searched = time.perf_counter() - begin
    best = tuple(trials[0]["rate"] for trials in found)
    together = {rates: concurrent(config, rates) for rates in dict.fromkeys([best, (COMMON,) * 3, (best[0],) * 3])}
    write_results(found, together, searched, options.images)


def concurrent(config: Config, rates: tuple[float, ...]) -> list[float]:
    """Exit bits/dim after all parts have trained together, as many epochs as each had in its turn."""
    name = "concurrent_" + "_".join(f"{rate:g}" for rate in rates)
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=str(Path(config.run.dir, name))),
        schedule=dataclasses.replace(config.schedule, mode="concurrent", local_epochs=TURN),
        optim=dataclasses.replace(config.optim, part_lr=rates),
    )
    return list(train(config).epochs[-1].exit_bpd)


def write_results(
    found: list[list[dict]], together: dict[tuple[float, ...], list[float]], seconds: float, images: int
) -> None:
    """The tables. found: trials by part, the best first; together: exits by the rates of a concurrent run."""
    machine = {**describe_machine(), "ray": version("ray")}
    rates = sorted({trial["rate"] for trials in found for trial in trials})
    option = "" if images == IMAGES else f" --images {images}"
    lines = [
        "# A learning rate for each part",
        "",
        f"`python -m benchmarks.part_lr.run{option}` on {in_words(machine)}, Ray {machine['ray']}; one trial at a time, "
        "one thread.",
        "",
        f"Small flow (3 blocks x 4 steps, width 64), 3 parts across blocks, {images:,} training images of CIFAR-10, batch "
        f"64, Adam, 20 updates of warm-up, cosine decay over a part's {TURN} epochs ({images // 64 * TURN} updates), seed "
        f"0; exit bits/dim on 500 test images. The search took {seconds:.0f} s of wall time, at low priority beside other "
        f"programs.",
        "",
        "Part after part, each on from the best of the part before; in brackets the epochs of trials that ASHA stopped:",
        "",
        "| rate | exit of part 0 | exit of part 1 | exit of part 2 |",
        "|---|---|---|---|",
    ]
    for rate in rates:
        cells = []
        for trials in found:
            (exits,) = [trial["exit_bpd"] for trial in trials if trial["rate"] == rate]
            stopped = "" if len(exits) == TURN else f" ({len(exits)})"
            cells.append(f"**{exits[-1]:.3f}**" if rate == trials[0]["rate"] else f"{exits[-1]:.3f}{stopped}")
        lines.append(f"| {rate:g} | {' | '.join(cells)} |")
    lines += [
        "",
        f"All parts together (concurrent, {TURN} epochs, the same updates a part):",
        "",
        "| rates of parts 0, 1, 2 | exit of part 0 | exit of part 1 | exit of part 2 |",
        "|---|---|---|---|",
    ]
    for each, exits in together.items():
        lines.append(f"| {', '.join(f'{rate:g}' for rate in each)} | {' | '.join(f'{exit:.3f}' for exit in exits)} |")
    trials = [[{"rate": trial["rate"], "exit_bpd": trial["exit_bpd"]} for trial in part] for part in found]
    results = {
        "machine": machine,
        "command": command_line("benchmarks.part_lr.run"),
        "images": images,
        "overrides": OVERRIDES,
        "search_seconds": seconds,
        "trials_by_part": trials,
        "concurrent": [{"part_lr": list(each), "exit_bpd": exits} for each, exits in together.items()],
    }
    name = "results" if images == IMAGES else f"results_{images}"
    (HERE / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
