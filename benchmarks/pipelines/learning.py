"""How much rivals with little communication learn in the epochs that the runs of benchmarks/schedules have.

    python -m benchmarks.pipelines.learning --data cifar10.zip      # learning.md, learning.json

Data parallelism plain, with PowerSGD's hook, and post-local SGD, which averages the copies' weights every so many batches:
18 epochs of the small flow on CIFAR-10, two workers that share each batch of 64, test bits/dim on all test images.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import yaml

from benchmarks.machine import describe_machine, in_words
from benchmarks.pipelines.launch import launch
from benchmarks.pipelines.systems import SYSTEMS, command, read
from pipeflow.config import Config, load

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "cifar10" / "small_glow.yaml"
WORKERS, WARMUP = 2, 50
RIVALS = {
    "DDP": ("ddp", ()),
    "DDP, PowerSGD of rank 2": ("ddp_powersgd", ()),
    "post-local SGD, an average every 8 batches": ("local_sgd", ("--period", "8")),
    "post-local SGD, an average every 32 batches": ("local_sgd", ("--period", "32")),
}


def train(name: str, options: tuple[str, ...], config: Config) -> dict:
    """The rival's whole training; what it measured."""
    epochs = config.schedule.local_epochs + config.schedule.finetune_epochs
    steps = epochs * (config.data.num_train // config.optim.batch_size) - WARMUP
    with tempfile.TemporaryDirectory() as scratch:
        out, path = Path(scratch) / "out", Path(scratch) / "config.yaml"
        path.write_text(yaml.safe_dump(config.to_dict()))
        started = command(SYSTEMS[name], path, out, steps, WARMUP, evaluate=True, options=options)
        launch(SYSTEMS[name], started, out, WORKERS, threads=1, timeout_s=3600)
        return dataclasses.asdict(read(SYSTEMS[name], out, WORKERS))


def main() -> None:
    """Trains what learning.json does not have yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a zip or folder of images as train/ and test/; else CIFAR-10 is fetched")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=[*RIVALS])
    options = parser.parse_args()
    config = load(CONFIG, {"data.name": "images", "data.path": options.data} if options.data else {})
    path = HERE / "learning.json"
    results = json.loads(path.read_text()) if path.exists() else {"machine": describe_machine(), "rivals": {}}
    for title in options.rivals:
        if title not in results["rivals"]:
            results["rivals"][title] = train(*RIVALS[title], config)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{title}: {results['rivals'][title]['test_bpd']:.3f}", flush=True)
    lines = [
        "# What rivals with little communication learn",
        "",
        f"`python -m benchmarks.pipelines.learning --data cifar10.zip` on {in_words(results['machine'])}; two workers of "
        "one thread, gloo over loopback.",
        "",
        "Small flow, 4,992 images of CIFAR-10, batch 64 in all, Adam, lr 1e-3, cosine decay, 18 epochs, seed 0; bits/dim "
        "on all 10,000 test images. MB = 1e6 bytes all-reduced in an epoch, by all workers together.",
        "",
        "| rival | test bits/dim | MB an epoch |",
        "|---|---|---|",
    ]
    for title, each in results["rivals"].items():
        lines.append(f"| {title} | {each['test_bpd']:.3f} | {each['sent_backward'] / 1e6:,.0f} |")
    (HERE / "learning.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
