"""The workers of a run: who this one is, on which device, and how it reaches the others.

Made from what torchrun and Ray Train both set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). One process
alone is a world of size 1, without torch.distributed.
"""

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeflow.config import Config, TimelineConfig
from pipeflow.device import choose_device
from pipeflow.errors import ConfigError, PipeflowError, WorkerError
from pipeflow.flow.parts import Part
from pipeflow.training.control import Control
from pipeflow.training.interfaces import stay_on_this_machine
from pipeflow.training.link import Channel, Link, LocalLink, ReceivingEnd, SendingEnd, make_wire
from pipeflow.training.liveness import LOST_AFTER_SECONDS, Alarm, Monitor, claim_failure, first_line
from pipeflow.training.preemption import Notice
from pipeflow.training.saver import Entries
from pipeflow.training.timeline import Timeline
from pipeflow.training.traffic import Traffic

_START_TIMEOUT = timedelta(minutes=10)
_FAIL_SECONDS = 5.0
_CAUSE_SECONDS = 3.0
_NO_TIMEOUT = timedelta(days=365)
"""Groups wait for as long as it takes: lost workers are noticed by broken connections and missing heartbeats."""


_RUNS = itertools.count()


class World:
    """This worker among the others. Close it at the end; `fail` tells the others of an error."""

    def __init__(self) -> None:
        """Connects to the other workers that the launcher started, if any."""
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.alarm = Alarm()
        self.notice = Notice(self.rank)
        self.traffic = Traffic()
        self.device = torch.device("cpu")
        self.backend = "gloo"
        self.timeline = Timeline(TimelineConfig(), self.device)
        self.monitor: Monitor | None = None
        self._store: dist.Store | None = None
        self._link_timeout = _NO_TIMEOUT
        self._links: list[Link] = []
        self.entries = Entries(None, self.rank, self.traffic)
        group = self._connect() if self.size > 1 else None
        self.control = Control(self.rank, self.size, group, self.traffic, self.alarm)

    def equip(self, config: Config) -> None:
        """Chooses this worker's device and the backend of its links.

        Raises ConfigError for a device or a backend that cannot be, and for more workers than parts.
        """
        config.check_world_size(self.size)
        self._link_timeout = timedelta(seconds=config.link.timeout_s)
        self.device = choose_device(config.run.device, int(os.environ.get("LOCAL_RANK", 0)))
        if config.precision.graphs and self.device.type != "cuda":
            raise ConfigError(
                f"precision.graphs: CUDA graphs need a GPU, this run is on the {self.device.type.upper()}."
            )
        self.backend = self._choose_backend(config)
        self.timeline = Timeline(config.timeline, self.device)

    def _connect(self) -> dist.ProcessGroup:
        try:
            return self._meet()
        except RuntimeError as error:
            raise WorkerError(
                f"worker {self.rank}: the {self.size} workers did not come together at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']} ({first_line(error)}). See what the others say; are all of them started, and "
                f"can they reach that address?"
            ) from None

    def _meet(self) -> dist.ProcessGroup:
        """The control group over gloo.

        Keys in the store carry the launcher's attempt and the number of this process's run: a restart, or a second
        `train` in the same workers, must not meet the keys of the one before.
        """
        attempt = f"pipeflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_RUNS)}"
        stay_on_this_machine()
        store, _, _ = next(dist.rendezvous("env://", timeout=_START_TIMEOUT))
        self._store = dist.PrefixStore(attempt, store)

        def connect() -> dist.Store:
            """For a thread of its own: a connection serves one at a time."""
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            own = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
            return dist.PrefixStore(attempt, own)

        self.monitor = Monitor(connect(), self.rank, self.size, self.alarm, self.notice, self.traffic)
        self.entries = Entries(connect(), self.rank, self.traffic)
        dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=_START_TIMEOUT)
        return dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)

    def _choose_backend(self, config: Config) -> str:
        """NCCL where each worker has a GPU to itself, unless asked otherwise."""
        asked = config.link.backend
        has_gpu = self.device.type == "cuda"
        about = torch.cuda.get_device_properties(self.device) if has_gpu else None
        gpu, model = (str(about.uuid), about.name) if has_gpu else ("", "CPU")
        gpus, models = zip(*self.control.share([[socket.gethostname(), gpu], model]))
        if config.link.dtype == "int8" and len(set(models)) > 1:
            raise ConfigError(
                f"link.dtype: int8 needs all workers on the CPU, or all on GPUs of one model, but here are "
                f"{', '.join(sorted(set(models)))}: both ends of a link draw one dither, and their random numbers differ. "
                f"Use bfloat16."
            )
        if asked == "nccl" and not has_gpu:
            raise ConfigError("link.backend: nccl moves CUDA tensors only, this run is on the CPU: use auto or gloo.")
        shared = len({tuple(each) for each in gpus}) < self.size or any(not gpu for _, gpu in gpus)
        if asked == "nccl" and shared:
            raise ConfigError("link.backend: nccl needs a GPU for each worker, here some share one: use auto or gloo.")
        return "gloo" if shared or asked == "gloo" else "nccl"

    def make_links(self, parts: Sequence[Part], owners: Sequence[int], config: Config) -> dict[int, Link]:
        """This worker's ends of the links between parts, by the index of the part in front.

        owners: the rank that holds each part. All workers call this together, as making groups asks for.
        """
        links: dict[int, Link] = {}
        for part, source, target in zip(parts, owners, owners[1:]):
            channel = Channel(part.index, part.output_shape, config.link.dtype, config.run.seed)
            if source == target:
                if source == self.rank:
                    links[part.index] = LocalLink(channel, self.traffic)
                continue
            group = dist.new_group([source, target], backend="gloo", timeout=_NO_TIMEOUT)
            nccl = None
            if self.backend == "nccl":
                nccl = dist.new_group([source, target], backend="nccl", timeout=_NO_TIMEOUT)
            if self.rank not in (source, target):
                continue
            wire = make_wire(group, nccl, target if self.rank == source else source, self.device)
            depth, timeout = config.link.depth, config.link.timeout_s
            if self.rank == source:
                links[part.index] = SendingEnd(
                    channel, wire, depth, timeout, self.traffic, self.alarm, self.timeline, self.rank
                )
            else:
                links[part.index] = ReceivingEnd(channel, wire, depth, timeout, self.alarm, self.timeline, self.rank)
        self._links = list(links.values())
        return links

    def gradient_group(self) -> dist.ProcessGroup:
        """A group of all workers for data-parallel gradients, who wait for each other in every batch."""
        return dist.new_group(backend=self.backend, timeout=self._link_timeout)

    def fail(self, error: PipeflowError) -> bool:
        """Tells the others of this worker's error. True where another worker's came first and has been said there."""
        if self._store is None or error.said or self.monitor.store_lost:
            return error.said
        answer: list[bool] = []

        def claim() -> None:
            with contextlib.suppress(RuntimeError):
                answer.append(claim_failure(self._store, self.rank, str(error)))

        # In a thread: behind a link that is cut the store never answers.
        claiming = threading.Thread(target=claim, name="pipeflow-failure", daemon=True)
        claiming.start()
        claiming.join(_FAIL_SECONDS)
        return not answer[0] if answer else False

    def cause_of(self, error: RuntimeError) -> PipeflowError:
        """What is behind a connection that broke inside torch: what the monitor hears in these seconds, else no more."""
        try:
            self.alarm.wait(_CAUSE_SECONDS)
        except PipeflowError as cause:
            return cause
        return WorkerError(
            f"a worker was lost, or its link: a connection of worker {self.rank} to the others broke "
            f"({first_line(error)}). Start the same command again to resume."
        )

    def close_links(self) -> None:
        """Ends this worker's links; those at their other ends do the same at the same point of the run."""
        for link in self._links:
            link.close()
        self._links = []

    def close(self) -> None:
        """Ends links, heartbeat and groups, after all workers have come to the same end."""
        self.close_links()
        if self.monitor is not None:
            self.control.share("closing")  # watched still, for as long as rank 0 draws its plots
            self.monitor.close()
            late = WorkerError(f"worker {self.rank}: not all workers came to the end of the run, which is complete.")
            unwatched = threading.Timer(LOST_AFTER_SECONDS, self.alarm.trip, [late])
            unwatched.daemon = True
            unwatched.start()
            self.control.share("end")  # after this nobody needs the store, which may end with rank 0's process
            unwatched.cancel()
            self.control.close()
            dist.destroy_process_group()
