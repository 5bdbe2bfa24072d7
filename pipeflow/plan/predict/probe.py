"""Measures this machine, with all its workers busy at once: about half a minute, then `--machines` predicts from it.

Each process has one thread, or as many as OMP_NUM_THREADS says, as under torchrun. In turn, all at the same time: forward
and training step of each kind of layer at several batch sizes, and the optimizer's update; then one process alone, while
the others rest; then messages and a pipeline of two empty stages between the first two, and an all-reduce of all, over gloo
and loopback.
"""

import json
import os
import platform
import tempfile
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

import pipeflow
from pipeflow.config import Config
from pipeflow.device import check_device, choose_device
from pipeflow.errors import PipeflowError
from pipeflow.flow import build_flow
from pipeflow.flow.layers import Shape
from pipeflow.plan.predict.compute_probe import ComputeProbe, combine
from pipeflow.plan.predict.link_probe import measure_links
from pipeflow.plan.predict.machines import Machines, read_machines
from pipeflow.plan.without_memory import build_without_memory
from pipeflow.workers.network import use_loopback

BATCH_SIZES = (8, 32, 128, 512)
"""Smaller ones are what pipelines compute at a time; none beyond the configured batch is needed."""

_SECONDS = 20.0
"""For the rounds in which everything is measured once: what disturbs one of them is not in the median."""


def probe(
    config: Config, shape: Shape, workers: int, threads: int | None = None, seconds: float = _SECONDS
) -> Machines:
    """The machines that this one is, with this many workers on it, for the configuration's flow.

    threads: of each process; None: what OMP_NUM_THREADS says, or 1.
    seconds: of the rounds in which everything is measured once; there is at least one.
    """
    sizes = sorted({*(size for size in BATCH_SIZES if size < config.optim.batch_size), config.optim.batch_size})
    check_device(config.run.device)
    threads = int(os.environ.get("OMP_NUM_THREADS", 1)) if threads is None else threads
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, folder, threads, config, shape, sizes, seconds)
        try:
            start_processes(_process, arguments, workers, start_method="forkserver")
        except ProcessExitedException as error:  # one that raises is a bug, and keeps its traceback
            raise PipeflowError(f"--probe: measuring process {error.error_index} of {workers} ended: {error}") from None
        measured = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]
    compute = combine([each["compute"] for each in measured], fmean)
    macs = sum(build_without_memory(config, lambda: build_flow(config, shape)).layer_multiply_adds())
    steps = {"batch_size": sizes, "multiply_adds": macs}
    steps |= {name: compute[name] for name in ("train", "forward", "update")}
    about = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads_a_worker": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pipeflow": pipeflow.__version__,
    }
    found = {"workers": workers, "step_seconds": steps, "image_seconds": compute["image"], "about": about}
    return read_machines(None, {**found, "alone": measured[0]["alone"], **measured[0]["links"]})


def _process(
    rank: int, workers: int, folder: str, threads: int, config: Config, shape: Shape, sizes: list[int], seconds: float
) -> None:
    torch.set_num_threads(threads)
    use_loopback()
    # A store in a file: one over TCP would listen on all interfaces.
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    flow = build_flow(config, shape)
    compute = ComputeProbe(flow, config, choose_device(config.run.device, rank))
    dist.barrier()
    together = compute.measure(sizes, seconds)
    dist.barrier()
    # The other processes wait in a barrier and compute nothing.
    alone = min(1.0, compute.whole_step(sizes[-1], seconds) / together["whole"][-1]) if rank == 0 else 1.0
    dist.barrier()
    num_parameters = sum(parameter.numel() for parameter in flow.parameters())
    links = measure_links(rank, workers, num_parameters) if workers > 1 else {}
    Path(folder, f"{rank}.json").write_text(json.dumps({"compute": together, "alone": alone, "links": links}))
    dist.barrier()
    dist.destroy_process_group()
