"""How much memory does the first worker need for images larger than memory, and how quickly are they decoded?

    python -m benchmarks.data.run [--gigabytes 4] [--decoded 20000] [--rounds 3] [--dir .] [--out FOLDER]

Writes a folder of PNGs of 64 x 64 pixels, which decode to so many gigabytes, into a temporary folder in --dir, and a cache
of that size beside it. Then, each in a process of its own, it trains a few batches of a small flow: with 64 such images,
with all of them decoded at the start, with all of them from the cache, and with all of them in memory. Last it decodes some
of the files with one process and with two, in turn. Writes results.md and results.json beside this file.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from benchmarks.machine import command_line, describe_machine, in_words
from pipeflow import Config, train
from pipeflow.data import Batches, dead_leaves, load_data
from pipeflow.data.decoding import Decoding
from pipeflow.data.image_source import open_source
from pipeflow.data.picture import AS_IS
from pipeflow.errors import Preempted

HERE = Path(__file__).parent
SIZE = 64
IMAGE_BYTES = 3 * SIZE * SIZE
NUM_DIFFERENT = 300
"""Images that are drawn; all others are links to them, which are read and decoded as often."""
NUM_TEST = 16
NUM_BATCHES = 20
GOAL = 1.2
"""Most that the first worker may take, where its own without the images is 1."""

CASES = {
    "64 images": ("few", "2 GB"),
    "all, decoded at the start": ("all", "2 GB"),
    "all, from the cache": ("all", "2 GB"),
    "all, in memory": ("all", "1 TB"),
}
"""For each case the folder of the images, and `data.memory`."""


def draw(folder: Path, num: int) -> list[Path]:
    """Files of so many different images."""
    folder.mkdir()
    files = []
    for index, image in enumerate(dead_leaves(num, seed=0, size=SIZE)):
        files.append(folder / f"{index}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    return files


def link(files: Sequence[Path], folder: Path, num_train: int) -> None:
    """A folder of so many training images, and some test images."""
    for index in range(num_train + NUM_TEST):
        part, number = ("train", index) if index < num_train else ("test", index - num_train)
        place = folder / part / f"{number // 10_000:03}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(files[index % len(files)], place / f"{number:07}.png")


def worker(run_dir: str, images: str, memory: str) -> dict[str, float]:
    """Trains some batches; the peak of this process's memory, and the seconds of its start and of a batch's images."""
    config = Config.from_dict(
        {
            "run": {"dir": run_dir, "device": "cpu"},
            "data": {"name": "images", "path": images, "memory": memory},
            "model": {"num_blocks": 2, "num_steps": 1, "width": 8},
            "parts": {"num": 2, "split": "blocks"},
            "optim": {"batch_size": 16},
            "schedule": {"local_epochs": 100},
        }
    )
    seen: list[float] = []

    def stop() -> bool:
        seen.append(time.perf_counter())
        return len(seen) > NUM_BATCHES

    began = time.perf_counter()
    with contextlib.suppress(Preempted):
        train(config, stop=stop)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    batches = Batches(load_data(config.data), 0, min(64, 3 * NUM_TEST), flip=False)
    start = time.perf_counter()
    for step in range(200):
        batches.train_images(0, step % batches.steps_per_epoch)
    return {
        "peak_bytes": 1024 * int(peak.split()[1]),
        "start_s": seen[0] - began,
        "batch_ms": 1e3 * (time.perf_counter() - start) / 200,
    }


def run_worker(folder: Path, case: str) -> dict[str, float]:
    """`worker` in a process of its own, whose cache lies in the folder."""
    images, memory = CASES[case]
    arguments = [str(folder / "runs" / case.replace(" ", "_")), str(folder / images), memory]
    command = [sys.executable, "-m", "benchmarks.data.run", "--worker", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{case}: {measured}", flush=True)
    return measured


def decode(folder: Path, num: int, num_processes: int) -> float:
    """Seconds to decode the first files into a file."""
    with open_source(folder) as source, tempfile.TemporaryFile(dir=folder.parent) as file:
        members = sorted(source.members, key=lambda member: member.path)[:num]
        decoding = Decoding(source, members, AS_IS)
        start = time.perf_counter()
        decoding.run(
            (3, SIZE, SIZE), lambda first, pixels: os.pwrite(file.fileno(), pixels, first * IMAGE_BYTES), num_processes
        )
        return time.perf_counter() - start


def measure(folder: Path, num_images: int, num_decoded: int, rounds: int, cases: Sequence[str]) -> dict:
    """Everything; folder: on the disk that is measured."""
    files = draw(folder / "different", min(num_images, NUM_DIFFERENT))
    link(files, folder / "few", 64 - NUM_TEST)
    link(files, folder / "all", num_images - NUM_TEST)
    memory = {case: run_worker(folder, case) for case in cases}
    decoding: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for num_processes, seconds in decoding.items():
            seconds.append(decode(folder / "all", num_decoded, num_processes))
            print(f"{num_decoded} images with {num_processes} processes: {seconds[-1]:.1f} s", flush=True)
    return {"num_images": num_images, "memory": memory, "num_decoded": num_decoded, "decoding_s": decoding}


def report(results: dict) -> str:
    """results.md."""
    measured = results["measured"]
    num = measured["num_images"]
    base = measured["memory"]["64 images"]["peak_bytes"]
    worst = max(measured["memory"][case]["peak_bytes"] / base for case in CASES if CASES[case][1] != "1 TB")
    lines = [
        "# Images larger than memory",
        "",
        f"`{results['command']}` on {in_words(results['machine'])}.",
        "",
        f"{num:,} images of 64 x 64 pixels, {num * IMAGE_BYTES / 1e9:.2f} GB; one worker on the CPU, a small flow at batch "
        f"16. Peak of its resident memory over {NUM_BATCHES} batches; seconds until the first batch, with decoding, or the "
        f"check of the cache; milliseconds to pick the 48 images of a batch.",
        "",
        f"- Goal, at most {GOAL} of its memory without the images: {worst:.2f}, {'met' if worst <= GOAL else 'missed'}.",
        "",
        "| images | data.memory | peak, MB | more, MB | ratio | s to the first batch | ms a batch of 48 |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, each in measured["memory"].items():
        lines.append(
            f"| {case} | {CASES[case][1]} | {each['peak_bytes'] / 1e6:,.0f} | "
            f"{(each['peak_bytes'] - base) / 1e6:,.0f} | {each['peak_bytes'] / base:.2f} | "
            f"{each['start_s']:.0f} | {each['batch_ms']:.2f} |"
        )
    one, two = (measured["decoding_s"][number] for number in sorted(measured["decoding_s"], key=int))
    lines += [
        "",
        f"Decoding {measured['num_decoded']:,} of the files, in turn, the smallest and the median of {len(one)} rounds:",
        "",
        "| processes | s | median s | images/s | ratio |",
        "|---|---|---|---|---|",
    ]
    for number, seconds in ((1, one), (2, two)):
        lines.append(
            f"| {number} | {min(seconds):.1f} | {median(seconds):.1f} | {measured['num_decoded'] / min(seconds):,.0f} | "
            f"{min(one) / min(seconds):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--decoded", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=".", help="a folder on the disk that is used")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(worker(*options.worker)))
        return
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="data-") as folder:
        num_images = round(options.gigabytes * 1e9 / IMAGE_BYTES)
        measured = measure(Path(folder), num_images, options.decoded, options.rounds, list(CASES))
    results = {
        "machine": describe_machine(),
        "command": command_line("benchmarks.data.run", arguments),
        "measured": measured,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "results.md").write_text(report(json.loads(json.dumps(results))))


if __name__ == "__main__":
    main()
