"""Measures this machine, with all its workers busy at once: about half a minute, then `--machines` predicts from it.

Each process has one thread, or as many as OMP_NUM_THREADS says, as under torchrun. In turn, all at the same time: forward
and training step of each kind of layer at several batch sizes, and the optimizer's update; then one process alone, while
the others rest; then messages and a pipeline of two empty stages between the first two, and an all-reduce of all, over gloo
and loopback.
"""

import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import fmean, median

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import pipeflow
from pipeflow.config import Config
from pipeflow.data.batches import dequantization_noise, dequantize
from pipeflow.device import choose_device
from pipeflow.flow import Flow, build_flow, split_flow
from pipeflow.flow.layers import Shape
from pipeflow.plan.predict.machines import Machines, read_machines
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.network import use_loopback

BATCH_SIZES = (8, 32, 128, 512)
"""Smaller ones are what pipelines compute at a time; none beyond the configured batch is needed."""

_SECONDS = 20.0
"""For the rounds in which everything is measured once: what disturbs one of them is not in the median."""
_LEAST_ROUNDS = 3
_LOOK_EVERY = 0.2
_MESSAGES = (1_000, 4_000_000)
"""Bytes."""
_MICRO_BATCHES = (2, 16)
_PIPELINE_ROUNDS = 12


def probe(
    config: Config, shape: Shape, workers: int, threads: int | None = None, seconds: float = _SECONDS
) -> Machines:
    """The machines that this one is, with this many workers on it, for the configuration's flow.

    threads: of each process; None: what OMP_NUM_THREADS says, or 1.
    seconds: of the rounds in which everything is measured once, but at least three.
    """
    sizes = _batch_sizes(config.optim.batch_size)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    threads = int(os.environ.get("OMP_NUM_THREADS", 1)) if threads is None else threads
    with tempfile.TemporaryDirectory() as folder:
        processes = multiprocessing.spawn(
            _process,
            (workers, f"{folder}/store", threads, config.to_dict(), tuple(shape), sizes, seconds, results),
            nprocs=workers,
            join=False,
        )
        # What is longer than a pipe holds is written only while it is read; and a process that fails writes nothing.
        while results.empty() and not processes.join(timeout=_LOOK_EVERY):
            pass
        measured = results.get()
        while not processes.join():
            pass
    return read_machines(None, {"workers": workers, **measured, "about": _about(threads)})


def describe(machines: Machines) -> str:
    """The head of the file."""
    return "Measured by pipeflow plan --probe: " + ", ".join(f"{key} {value}" for key, value in machines.about.items())


def _about(threads: int) -> dict:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads_a_worker": threads,
        "python": platform.python_version(),
        "torch": version("torch"),
        "pipeflow": pipeflow.__version__,
    }


def _batch_sizes(configured: int) -> tuple[int, ...]:
    return tuple(sorted({*(size for size in BATCH_SIZES if size < configured), configured}))


# ------------------------------------------------------------------------------------------------------- one process


def _process(
    rank: int, workers: int, store_file: str, threads: int, settings: dict, shape: Shape, sizes: tuple[int, ...],
    seconds: float, results,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    use_loopback()
    store = dist.FileStore(store_file, workers)  # a TCPStore would listen on all interfaces
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    config = Config.from_dict(settings)
    device = choose_device(config.run.device, rank)
    flow = build_flow(config, shape)
    compute = Compute(flow, config, device)
    dist.barrier()
    together = compute.measure(sizes, seconds)
    dist.barrier()
    if rank == 0:
        own = together["whole"][-1]
        # The others wait in a barrier and compute nothing.
        alone = compute.whole_step(sizes[-1])
    dist.barrier()
    links = _links(rank, workers, sum(parameter.numel() for parameter in flow.parameters())) if workers > 1 else {}
    store.set(f"measured by {rank}", json.dumps(together))
    if rank == 0:
        together = _combine([json.loads(store.get(f"measured by {other}")) for other in range(workers)], fmean)
        results.put(
            {
                "step_seconds": {
                    "batch_size": list(sizes),
                    "train": together["train"],
                    "forward": together["forward"],
                    "update": together["update"],
                },
                "image_seconds": together["image"],
                "alone": min(1.0, alone / own),
                **links,
            }
        )
    dist.barrier()
    dist.destroy_process_group()


class Compute:
    """Times one flow in one process."""

    def __init__(self, flow: Flow, config: Config, device: torch.device):
        self.flow, self.config, self.device = flow, config, device
        self.trainer = PartTrainer(split_flow(flow, [])[0], device, config, config.optim.lr, 1)
        self.trainer.part.initialize(torch.rand(8, *flow.shape, device=device) - 0.5)

    def measure(self, sizes: tuple[int, ...], seconds: float) -> dict:
        """Seconds of each layer and of the whole: by batch size; of an update, and of an image's preparation."""
        begun = time.perf_counter()
        rounds: list[dict] = []
        while len(rounds) < _LEAST_ROUNDS or (time.perf_counter() - begun < seconds and not _is_enough(len(rounds))):
            rounds.append(self._round(sizes))
        return _combine(rounds, median)

    def _round(self, sizes: tuple[int, ...]) -> dict:
        forward: dict[str, list[float]] = {name: [] for name in self.flow.names}
        train: dict[str, list[float]] = {name: [] for name in self.flow.names}
        whole = []
        for size in sizes:
            images = self._images(size)
            layers = self._layers(size)
            step, update = self._step(size)
            run = self._timed(functools.partial(self.trainer.run, images))
            # Layers one by one keep nothing warm for each other: their sums are scaled to what the whole flow takes.
            scale_train = step / sum(of_train for _, of_train in layers.values())
            scale_forward = run / sum(of_forward for of_forward, _ in layers.values())
            for name, (of_forward, of_train) in layers.items():
                forward[name].append(of_forward * scale_forward)
                train[name].append(of_train * scale_train)
            whole.append(step + update)
        return {"forward": forward, "train": train, "whole": whole, "update": update, "image": self._image(sizes[-1])}

    def whole_step(self, size: int) -> float:
        """Seconds of a training step of the whole flow."""
        return median(sum(self._step(size)) for _ in range(_LEAST_ROUNDS + 2))

    def _images(self, size: int) -> Tensor:
        return torch.rand(size, *self.flow.shape, device=self.device) - 0.5

    def _layers(self, size: int) -> dict[str, tuple[float, float]]:
        """Each kind of layer is timed at most twice, in its place in the flow; the others of its kind take the mean."""
        kinds: dict[tuple, list[str]] = {}
        seconds: dict[tuple, list[tuple[float, float]]] = {}
        latent = self._images(size)
        for (name, layer), shape in zip(self.flow.named_layers(), self.flow.shapes):
            kind = (type(layer), shape, tuple(parameter.shape for parameter in layer.parameters()))
            kinds.setdefault(kind, []).append(name)
            if len(seconds.setdefault(kind, [])) < 2:
                seconds[kind].append(self._layer(layer, latent, is_first=name == self.flow.names[0]))
            with torch.no_grad():
                latent = layer(latent)[0]
        means = {kind: tuple(sum(each) / len(each) for each in zip(*times)) for kind, times in seconds.items()}
        return {name: means[kind] for kind, names in kinds.items() for name in names}

    def _layer(self, layer: torch.nn.Module, latent: Tensor, is_first: bool) -> tuple[float, float]:
        def run() -> None:
            with torch.no_grad():
                layer(latent)

        def train() -> None:
            outputs = layer(latent.detach().requires_grad_(not is_first))
            total = outputs[0].sum() + outputs[1].sum()
            if total.requires_grad:
                total.backward()

        return self._timed(run), self._timed(train)

    def _step(self, size: int) -> tuple[float, float]:
        """Forward and backward, and the update, of the whole flow."""
        images, trainer = self._images(size), self.trainer
        updates: list[float] = []

        def step() -> None:
            _, loss = trainer.forward(images)
            trainer.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._wait()
            begin = time.perf_counter()
            trainer.optimizer.step()
            self._wait()
            updates.append(time.perf_counter() - begin)

        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0  # the weights stay: a diverged flow computes with other numbers
        whole = self._timed(step)
        return whole - updates[-1], updates[-1]

    def _image(self, size: int) -> float:
        """Of a batch as `Batches` makes it from decoded images."""
        pixels = torch.zeros(size, *self.flow.shape, dtype=torch.uint8)

        def prepare() -> None:
            dequantize(pixels, dequantization_noise(0, "train", 0, 0, tuple(pixels.shape))).to(self.device)

        return self._timed(prepare) / size

    def _timed(self, run: Callable[[], object]) -> float:
        """Seconds of the second of two calls."""
        run()
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _is_enough(rounds: int) -> bool:
    return rounds >= 15


def _combine(several: list[dict], how: Callable[[list[float]], float]) -> dict:
    """Equal dictionaries of numbers and lists of numbers as one, number by number."""

    def together(values: list) -> object:
        if isinstance(values[0], dict):
            return {key: together([each[key] for each in values]) for key in values[0]}
        if isinstance(values[0], list):
            return [together(list(each)) for each in zip(*values)]
        return how(values)

    return together(several)


# ------------------------------------------------------------------------------------------------------------- links


def _links(rank: int, workers: int, num_parameters: int) -> dict:
    """Bandwidth, latency and the processor time of messages between the first two, and of an all-reduce of all."""
    small, large = (_message_seconds(rank, num_bytes) for num_bytes in _MESSAGES)
    gradients = torch.zeros(num_parameters)
    times = []
    for _ in range(6):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(time.perf_counter() - begin)
    per_byte = max(1e-12, (large[0] - small[0]) / (_MESSAGES[1] - _MESSAGES[0]))
    per_byte_busy = max(0.0, (large[1] - small[1]) / (_MESSAGES[1] - _MESSAGES[0]))
    sent = 2 * (workers - 1) / workers * 4 * num_parameters
    reducing = max(1e-9, median(times[1:]) - 2 * (workers - 1) * small[0])
    # A message is two: the header and the latent.
    message_seconds = 2 * max(0.0, small[1] - _MESSAGES[0] * per_byte_busy)
    return {
        "bandwidth": 8 / per_byte,
        "latency": max(0.0, small[0] - _MESSAGES[0] * per_byte),
        "message_seconds": message_seconds,
        "byte_seconds": per_byte_busy,
        "reduce_bandwidth": 8 * sent / reducing,
        # Of a micro-batch an empty stage has a forward and a backward, each with a message at one end.
        "pass_seconds": max(0.0, _micro_batch_seconds(rank) / 2 - message_seconds),
    }


def _message_seconds(rank: int, num_bytes: int, num: int = 30) -> tuple[float, float]:
    """Seconds until a message is there, and processor seconds of an end, of messages back and forth."""
    payload = torch.zeros(num_bytes, dtype=torch.uint8)
    times = []
    for index in range(3 * num):
        if index == num:
            busy = time.process_time()
        dist.barrier() if index == 0 else None
        begin = time.perf_counter()
        if rank == 0:
            dist.send(payload, 1)
            dist.recv(payload, 1)
        elif rank == 1:
            dist.recv(payload, 0)
            dist.send(payload, 0)
        times.append((time.perf_counter() - begin) / 2)
    return median(times[num:]), (time.process_time() - busy) / (2 * 2 * num)


class _EmptyStage(nn.Module):
    """Hands on what a stage of a flow does, a latent and a log-density, and computes next to nothing."""

    def __init__(self, is_last: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.is_last = is_last

    def forward(self, latent: Tensor, log_density: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        latent = latent * self.scale
        total = latent.sum(1).double()
        total = total if log_density is None else total + log_density
        return total if self.is_last else (latent, total)


def _micro_batch_seconds(rank: int) -> float:
    """Seconds that torch's GPipe between the first two workers takes longer for each micro-batch more; 0 in the others.

    The slope between two numbers of micro-batches: what a step costs by itself is not in it.
    """
    group = dist.new_group([0, 1])
    if rank > 1:
        return 0.0
    slopes = []
    stage = PipelineStage(_EmptyStage(rank == 1), rank, 2, torch.device("cpu"), group=group)
    schedules = {num: ScheduleGPipe(stage, num, loss_fn=lambda total, _: total.mean()) for num in _MICRO_BATCHES}
    for _ in range(_PIPELINE_ROUNDS):
        few, many = (_pipeline_step(schedule, rank, num) for num, schedule in schedules.items())
        slopes.append((many - few) / (_MICRO_BATCHES[1] - _MICRO_BATCHES[0]))
    return max(0.0, median(slopes[1:]))


def _pipeline_step(schedule: ScheduleGPipe, rank: int, num_micro: int) -> float:
    """Seconds of the second of two steps on one image a micro-batch."""
    for _ in range(2):
        inputs = [torch.ones(num_micro, 1)] if rank == 0 else []
        begin = time.perf_counter()
        schedule.step(*inputs, target=torch.zeros(num_micro), losses=[], return_outputs=False)
        seconds = time.perf_counter() - begin
    return seconds
