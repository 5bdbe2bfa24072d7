"""A GPU's numbers against the CPU's: each check trains something small on both and says how far they are apart.

    python -m benchmarks.gpu.checks [--device cuda] [--toy] [NAME ...]

    flow         log-likelihoods and gradients of a flow, and images that come back from its latents
    run          a run of three parts in one process: its losses and bits/dim
    checkpoints  a run that stopped on the device goes on there and on the CPU
    two_workers  two workers share the device, and hand latents over gloo through pinned memory, as float32 and as int8
    pipeline     two workers share the device in a pipeline, and in micro-batches by parts, against one worker
    replicas     two workers share each batch, and the device
    nccl_alone   NCCL in a world of one, and data-parallel training of one
    nccl_pair    NCCL between two processes: links between two GPUs; on one GPU NCCL usually refuses, which is written down
    steps        training steps with all ways to compute them, against the reference step
    compile      the same, compiled by torch

On the CPU, where they are tried (`--toy`), they hold the CPU's numbers against themselves, over gloo. Needs no pytest:
tests/gpu calls the same functions.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import pipeflow
from benchmarks.gpu.processes import WorkerFailed, in_workers
from benchmarks.step.systems import Case, Images, PipeflowStep, configuration
from pipeflow.config import Config
from pipeflow.data import Batches, load_data
from pipeflow.device import choose_device, has_bfloat16
from pipeflow.flow import build_flow, split_flow
from pipeflow.training.data_parallel import DataParallelTrainer
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.traffic import Traffic

SAME = 1e-3
"""Bits/dim by which numbers of one device may differ that are summed in another order."""
CLOSE = 0.02
"""Bits/dim by which short trainings may differ on two devices, or in another type."""
_NUM_UPDATES = 5


@dataclass(frozen=True)
class Row:
    """One number of the device, the number that it is held against, and how far they may be apart."""

    name: str
    found: float
    expected: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the two are close enough; what is no number is not."""
        return abs(self.found - self.expected) <= self.bound


@dataclass(frozen=True)
class Place:
    """The device on which a check computes, and the size of what it trains."""

    device: str
    """cuda or cpu."""
    folder: Path
    """Folder for run folders; empty at the beginning."""
    toy: bool = False

    @property
    def model(self) -> dict:
        """The flow of all checks."""
        return {"num_blocks": 2, "num_steps": 2, "width": 8 if self.toy else 64}

    def config(self, name: str, device: str | None = None, **sections: dict) -> Config:
        """A short concurrent run of three parts into `folder/name`; sections: options laid over it."""
        given = {
            "run": {"dir": str(self.folder / name), "device": device or self.device, "figures": False},
            "data": {"num_train": 64 if self.toy else 512, "num_test": 40, "flip": True},
            "model": self.model,
            "parts": {"split": "across", "num": 3},
            "schedule": {"mode": "concurrent", "local_epochs": 1 if self.toy else 3, "finetune_epochs": 1},
            "optim": {"batch_size": 32, "warmup_steps": 2, "ema": 0.9, "clip_norm": 1.0},
            "eval": {"num_images": 24},
        }
        for section, values in sections.items():
            given[section] = {**given.get(section, {}), **values}
        return Config.from_dict(given)


# ------------------------------------------------------------------------------------------------------ one process


def check_flow(place: Place) -> list[Row]:
    """Log-likelihoods, gradients and inverses of a flow with the same parameters on both devices."""
    return in_workers(1, _compare_flow, place)[0]


def _compare_flow(place: Place) -> list[Row]:
    rows = []
    for step in ("reference", "fast"):
        config = place.config("flow", precision={"step": step})
        batches = Batches(load_data(config.data), config.run.seed, config.optim.batch_size, config.data.flip)
        images = batches.initial()
        found = {}
        for name in ("cpu", place.device):
            device = choose_device(name)
            (part,) = split_flow(build_flow(config, batches.data.shape), [])
            part.initialize(images)
            _disturb(part)
            part.to(device)
            loss = part.loss(part(images.to(device)))
            loss.backward()
            norm = torch.stack([each.grad.norm() for each in part.parameters()]).norm()
            found[name] = (float(loss.detach()), float(norm))
        (loss, norm), (expected_loss, expected_norm) = found[place.device], found["cpu"]
        rows.append(Row(f"loss, {step}", loss, expected_loss, SAME))
        rows.append(Row(f"norm of the gradient, {step}", norm, expected_norm, 0.01 * expected_norm))
    with torch.no_grad():
        flow = build_flow(config, batches.data.shape)
        flow.initialize(images)
        _disturb(flow)
        flow.to(device)
        latent, _, taken_out = flow(images.to(device))
        error = float((flow.inverse(latent, taken_out).cpu() - images).abs().max())
    return [*rows, Row("images that come back, largest error", error, 0.0, SAME)]


@torch.no_grad()
def _disturb(module: nn.Module) -> None:
    """Moves parameters away from their initial values, at which the coupling nets do nothing."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


def check_run(place: Place) -> list[Row]:
    """Losses of every epoch and bits/dim at the end of a whole run, figures aside."""
    found, expected = (_train(place.config(f"run_{name}", name)) for name in (place.device, "cpu"))
    rows = [Row(name, found[name], expected[name], CLOSE) for name in ("test_bpd", "initial_bpd")]
    for index, (mine, theirs) in enumerate(zip(found["epochs"], expected["epochs"], strict=True)):
        rows += [
            Row(f"loss of {part}, epoch {index}", mine["train_loss"][part], theirs["train_loss"][part], CLOSE)
            for part in theirs["train_loss"]
        ]
    return rows


def check_checkpoints(place: Place) -> list[Row]:
    """A run end to end in one go, and one that stops after an epoch, of which a copy goes on on the CPU."""

    def config(name: str, epochs: int, device: str = place.device) -> Config:
        schedule = {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": epochs}
        return place.config(name, device, schedule=schedule, optim={"decay": "none"})

    whole = _train(config("whole", 2))
    _train(config("stopped", 1))
    shutil.copytree(place.folder / "stopped", place.folder / "moved")
    on_device, on_cpu = _train(config("stopped", 2)), _train(config("moved", 2, "cpu"))
    return [
        Row("test_bpd, resumed here", on_device["test_bpd"], whole["test_bpd"], SAME),
        Row("test_bpd, resumed on the CPU", on_cpu["test_bpd"], whole["test_bpd"], CLOSE),
    ]


# --------------------------------------------------------------------------------------------------- two processes


def check_two_workers(place: Place) -> list[Row]:
    """Links over gloo between two workers against one worker that holds all parts, float32 and int8."""
    rows = []
    for dtype in ("int8",) if place.toy else ("float32", "int8"):
        link = {"dtype": dtype, "backend": "gloo"}
        one = _train(place.config(f"one_{dtype}", link=link))
        two = _train(place.config(f"two_{dtype}", link=link), num_workers=2)
        rows.append(Row(f"test_bpd, {dtype}", two["test_bpd"], one["test_bpd"], SAME))
        rows += [
            Row(f"exit {part}, {dtype}", mine, theirs, SAME)
            for part, (mine, theirs) in enumerate(zip(two["exit_bpd"], one["exit_bpd"], strict=True))
        ]
        forward = (sum(each["bytes"]["forward"]) for each in (two, one))
        rows.append(Row(f"bytes forward, {dtype}", *forward, bound=0))
    return rows


def check_replicas(place: Place) -> list[Row]:
    """Two workers that share each batch, by parts and end to end, against one."""
    parallel = {"parts": {"split": "balanced", "num": 1}, "finetune": {"parallel": "ddp"}}
    one = _train(place.config("one", parts={"split": "balanced", "num": 1}))
    two = _train(
        place.config("two", parts={**parallel["parts"], "replicas": 2}, finetune=parallel["finetune"],
                     link={"backend": "gloo"}), num_workers=2,
    )  # fmt: skip
    return [Row("test_bpd", two["test_bpd"], one["test_bpd"], CLOSE)]


def check_pipeline(place: Place) -> list[Row]:
    """Two workers whose end-to-end epochs are a pipeline, and whose parts take micro-batches, against one worker."""
    one = _train(place.config("one"))
    sections = {"finetune": {"parallel": "pipeline"}, "memory": {"micro_batches": 4}, "link": {"backend": "gloo"}}
    two = _train(place.config("two", **sections), num_workers=2)
    losses = (each["epochs"][-1]["train_loss"]["flow"] for each in (two, one))
    return [
        Row("test_bpd", two["test_bpd"], one["test_bpd"], SAME),
        Row("loss end to end, last epoch", *losses, bound=SAME),
        Row("links over which gradients came back", sum(size > 0 for size in two["bytes"]["backward"]), 1, 0),
    ]


def check_nccl_alone(place: Place) -> list[Row]:
    """A world of one: a sum over all workers is what it was, and data-parallel training is training."""
    return in_workers(1, _compare_alone, place)[0]


def _compare_alone(place: Place) -> list[Row]:
    device = choose_device(place.device)
    dist.init_process_group(_backend(place.device), timeout=timedelta(seconds=60))
    total = torch.full((1000,), 2.5, device=device)
    dist.all_reduce(total)
    rows = [Row("sum of a world of one", float(total.mean()), 2.5, 0)]
    config = place.config("alone")
    batches = Batches(load_data(config.data), config.run.seed, config.optim.batch_size, config.data.flip)
    losses = {}
    for kind in (PartTrainer, DataParallelTrainer):
        (part,) = split_flow(build_flow(config, batches.data.shape), [])
        part.initialize(batches.initial())
        trainer = kind(part, device, config, config.optim.lr, _NUM_UPDATES)
        if isinstance(trainer, DataParallelTrainer):
            trainer.join(Replicas((0,), 0, dist.group.WORLD), config, device, Traffic(), Alarm())
        for step in range(_NUM_UPDATES):
            _, loss = trainer.forward(
                batches.train(step // batches.steps_per_epoch, step % batches.steps_per_epoch).to(device)
            )
            trainer.update(loss)
        losses[kind] = float(loss.detach())
    rows.append(Row("loss, data-parallel of one", losses[DataParallelTrainer], losses[PartTrainer], SAME))
    dist.destroy_process_group()
    return rows


def check_nccl_pair(place: Place) -> list[Row]:
    """Links over NCCL between two GPUs. On one GPU: whether NCCL connects two processes; its refusal is no failure."""
    if place.device == "cuda" and in_workers(1, torch.cuda.device_count)[0] > 1:
        one = _train(place.config("one"))
        two = _train(place.config("two", link={"backend": "nccl"}), num_workers=2)
        return [Row("test_bpd", two["test_bpd"], one["test_bpd"], SAME)]
    try:
        sums = in_workers(2, _sum_of_pair, place.device, timeout_s=90)
    except (WorkerFailed, TimeoutError) as error:
        print(f"NCCL between two processes on one GPU: {error}")
        return [Row("two processes on one device: refused", 0.0, 0.0, 0.0)]
    return [Row("sum of two processes on one device", each, 3.0, 0.0) for each in sums]


def _sum_of_pair(device: str) -> float:
    dist.init_process_group(_backend(device), timeout=timedelta(seconds=60))
    value = torch.tensor([dist.get_rank() + 1.0], device=choose_device(device))
    dist.all_reduce(value)
    return float(value)


# ----------------------------------------------------------------------------------------------- ways to compute a step

_STEPS = {
    "reference": {"precision": {"step": "reference"}},
    "fast": {"precision": {"step": "fast"}},
    "recompute": {"memory": {"activations": "recompute"}},
    "invert": {"memory": {"activations": "invert"}},
    "bfloat16": {"precision": {"coupling": "bfloat16"}},
}


def check_steps(place: Place) -> list[Row]:
    """The loss after a few updates, computed in each way that pipeflow has."""
    ways = dict(_STEPS)
    if not in_workers(1, _has_bfloat16, place.device)[0]:
        del ways["bfloat16"]
    return _compare_steps(place, ways)


def check_compile(place: Place) -> list[Row]:
    """The same with what torch.compile makes of the flow steps."""
    return _compare_steps(place, {"compile": {"precision": {"compile": True}}})


def _compare_steps(place: Place, ways: dict[str, dict]) -> list[Row]:
    expected = in_workers(1, _losses_of_steps, place, "cpu", {"reference": _STEPS["reference"]})[0]["reference"]
    found = in_workers(1, _losses_of_steps, place, place.device, ways)[0]
    return [Row(f"loss, {name}", loss, expected, CLOSE) for name, loss in found.items()]


def _losses_of_steps(place: Place, device_name: str, ways: dict[str, dict]) -> dict[str, float]:
    case = Case("check", {**place.model, "num_blocks": 1}, 8 if place.toy else 64, device_name)
    device = choose_device(device_name)
    losses = {}
    for name, options in ways.items():
        options = {**options, "optim": {"lr": 3e-3}}  # at which a few updates move the loss
        step = PipeflowStep(case, options, Images(configuration(case, {}), device), device)
        for _ in range(_NUM_UPDATES):
            loss = step()
        losses[name] = float(loss)
    return losses


def _has_bfloat16(device: str) -> bool:
    return has_bfloat16(choose_device(device))


# -------------------------------------------------------------------------------------------------------------- all

CHECKS: dict[str, Callable[[Place], list[Row]]] = {
    "flow": check_flow,
    "run": check_run,
    "two_workers": check_two_workers,
    "nccl_alone": check_nccl_alone,
    "nccl_pair": check_nccl_pair,
    "compile": check_compile,
    "steps": check_steps,
    "pipeline": check_pipeline,
    "replicas": check_replicas,
    "checkpoints": check_checkpoints,
}
"""All checks by name, the most telling first."""


def _train(config: Config, num_workers: int = 1) -> dict:
    """A whole run in processes of its own; its summary."""
    in_workers(num_workers, pipeflow.train, config)
    return json.loads((Path(config.run.dir) / "summary.json").read_text())


def _backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the checks, prints their rows and writes them to `--out`; 1 where a number is too far from the CPU's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--toy", action="store_true", help="as small as can be")
    parser.add_argument("--out", type=Path, help="a folder: NAME.json for each check")
    options = parser.parse_args(arguments)
    holds = True
    for name in options.names or CHECKS:
        with tempfile.TemporaryDirectory(prefix=f"pipeflow-{name}-") as folder:
            rows = CHECKS[name](Place(options.device, Path(folder), options.toy))
        for row in rows:
            print(f"{name}: {row.name}: {row.found:.6g}, expected {row.expected:.6g} within {row.bound:g}"
                  f"{'' if row.holds else ': TOO FAR'}", flush=True)  # fmt: skip
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        holds = holds and all(row.holds for row in rows)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
