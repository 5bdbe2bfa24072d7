"""One process of a baseline: trains the flow of a configuration and writes down what it measured.

    torchrun --nproc_per_node=2 -m benchmarks.pipelines.worker --system 1f1b --micro-batches 4 --config FILE.yaml \\
        --steps 40 --out FOLDER

Takes RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from the environment, so it may be started by hand as well, one process
a machine or network namespace. Writes FOLDER/rank<R>.json. Steps of the warm-up train but are not measured.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.pipelines.data_parallel import CompressedDataParallel, DataParallel
from benchmarks.pipelines.local_sgd import LocalSGD
from benchmarks.pipelines.measure import interface_bytes, peak_memory
from benchmarks.pipelines.torch_pipeline import KINDS, TorchPipeline
from pipeflow.config import Config, load
from pipeflow.data import Batches, load_data
from pipeflow.device import choose_device, keep_freed_memory
from pipeflow.flow import build_flow
from pipeflow.training.trainer import learning_rate

COMPRESSIONS = {
    **dict.fromkeys(KINDS, ("none", "bf16")),
    "ddp": ("none", "bf16", "powersgd"),
    "local_sgd": ("none",),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be before anything starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=COMPRESSIONS, required=True)
    parser.add_argument("--compress", choices=("none", "bf16", "powersgd"), default="none")
    parser.add_argument("--micro-batches", type=int, default=4, help="of a pipeline")
    parser.add_argument(
        "--torch-split", action="store_true", help="of zero bubble: torch's split (see torch_pipeline.py)"
    )
    parser.add_argument("--period", type=int, default=8, help="of local_sgd: steps from one average to the next")
    parser.add_argument("--power-rank", type=int, default=2, help="of PowerSGD: rank of the approximation")
    parser.add_argument("--config", required=True, help="a pipeflow configuration: flow, cuts, data, optimizer, device")
    parser.add_argument("--steps", type=int, required=True, help="measured steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before; PowerSGD and local SGD begin behind them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--evaluate", action="store_true", help="test bits/dim at the end, where each worker has one stage or all"
    )
    parser.add_argument("--timeline", type=Path, help="FILE.json: compute spans, written to FILE.rank<R>.json")
    parser.add_argument("--timeline-steps", type=int, default=3, help="measured steps in the timeline, from the first")
    options = parser.parse_args(arguments)
    if options.compress not in COMPRESSIONS[options.system]:
        parser.error(f"--compress {options.compress}: {options.system} has {', '.join(COMPRESSIONS[options.system])}")
    if options.evaluate and options.system in KINDS and KINDS[options.system].stages_per_worker > 1:
        parser.error(f"--evaluate: {options.system} has several stages a worker; use gpipe, 1f1b, ddp or local_sgd")
    if options.steps < 1 or options.warmup < 2:
        parser.error("--steps must be 1 or more and --warmup 2 or more: torch settles buckets and shapes before")
    return options


def connect(config: Config) -> torch.device:
    """Joins the other processes and chooses this one's device: a GPU only for `run.device: cuda`.

    NCCL where each process has a GPU to itself, else gloo.
    """
    if config.run.device != "cuda":
        keep_freed_memory()  # as pipeflow does: half of a step's time at large batches, whatever the system
        dist.init_process_group("gloo")
        return torch.device("cpu")
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    device = choose_device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # float32 as pipeflow computes it: no TF32
    dist.init_process_group("nccl" if torch.cuda.device_count() >= num_here else "gloo")
    return device


def build(
    options: argparse.Namespace, config: Config, device: torch.device
) -> tuple[TorchPipeline | DataParallel, int]:
    """This process's part of the system, initialised on data, and the number of steps in an epoch."""
    is_pipeline = options.system in KINDS
    batches, info = None, [None]
    if not is_pipeline or dist.get_rank() == 0:
        batches = Batches(load_data(config.data), config.run.seed, config.optim.batch_size, config.data.flip)
        info = [(batches.data.shape, batches.steps_per_epoch)]
    dist.broadcast_object_list(info, src=0)
    shape, steps_per_epoch = info[0]
    flow = build_flow(config, shape)
    if is_pipeline:
        wire = torch.bfloat16 if options.compress == "bf16" else torch.float32
        settings = {"num_microbatches": options.micro_batches, "wire": wire, "torch_split": options.torch_split}
        system = TorchPipeline(KINDS[options.system], flow, batches, config, device=device, **settings)
    elif options.system == "local_sgd":
        system = LocalSGD(flow, batches, config, device, start=options.warmup, period=options.period)
    elif options.compress == "none":
        system = DataParallel(flow, batches, config, device)
    else:
        settings = {"compress": options.compress, "start": options.warmup, "power_rank": options.power_rank}
        system = CompressedDataParallel(flow, batches, config, device, **settings)
    return system, steps_per_epoch


def train(system: TorchPipeline | DataParallel, options: argparse.Namespace, config: Config, per_epoch: int) -> dict:
    """Warm-up and measured steps; what was measured."""
    losses, num_updates = [], options.warmup + options.steps
    first = _all_here()
    system.sent.reset()
    for index in range(num_updates):
        if index == options.warmup:
            start, began, interfaces = _all_here(), time.time(), interface_bytes()
            before = system.sent.forward, system.sent.backward
            system.clock.reset()
            system.sent.reset()
        rate = learning_rate(config.optim.lr, index, num_updates, config.optim.warmup_steps, config.optim.decay)
        loss = system.step(*divmod(index, per_epoch), rate)
        if loss is not None:
            losses.append(loss)
        if index == options.warmup + options.timeline_steps - 1 and options.timeline:
            _write_timeline(options.timeline, system.clock.spans)
    end, after = _all_here(), interface_bytes()
    seconds = end - start
    images, epochs = options.steps * config.optim.batch_size, options.steps / per_epoch
    return {
        "rank": dist.get_rank(),
        "began": began,
        "seconds": seconds,
        "images": images,
        "images_per_epoch": per_epoch * config.optim.batch_size,
        "images_per_s": images / seconds,
        # A GPU computes on after the call that asked for it: its spans would say little.
        "busy_seconds": system.clock.busy_seconds() if config.run.device != "cuda" else None,
        "sent_forward_bytes": system.sent.forward / epochs,
        "sent_backward_bytes": system.sent.backward / epochs,
        "interface_bytes": {name: (after[name] - count) / epochs for name, count in interfaces.items()},
        "run_seconds": end - first,
        "run_forward_bytes": before[0] + system.sent.forward,
        "run_backward_bytes": before[1] + system.sent.backward,
        "peak_memory": peak_memory(),
        "losses": [float(loss) for loss in losses[-10:]],
    }


def _all_here() -> float:
    """Waits for all processes and for the GPU; the time."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter()


def _write_timeline(path: Path, spans: list[dict]) -> None:
    path.with_suffix(f".rank{dist.get_rank()}.json").write_text(json.dumps(spans, indent=1) + "\n")


def main() -> None:
    """Trains, and writes rank<R>.json."""
    options = parse_arguments()
    config = load(options.config)
    device = connect(config)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.system in KINDS and device.type == "cuda" and dist.get_backend() == "gloo":
        reason = "torch's gloo sends no CUDA tensors from process to process, and NCCL needs a GPU for each"
        measured = {"not_possible": reason}
    else:
        system, steps_per_epoch = build(options, config, device)
        measured = train(system, options, config, steps_per_epoch)
        if options.evaluate:
            system.prepare_evaluation()
            is_pipeline = options.system in KINDS  # in which each worker has a part of the flow
            measured["test_bpd"] = system.evaluate() if is_pipeline or dist.get_rank() == 0 else None
    (options.out / f"rank{dist.get_rank()}.json").write_text(json.dumps(measured, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as pipeflow's launcher leaves: torch's own threads can abort at the interpreter's end
