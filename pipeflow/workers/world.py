"""The workers of a run: who this one is, on which device, and how it reaches the others.

Made from what torchrun and Ray Train both set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). One process
alone is a world of size 1, without torch.distributed.
"""

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from pipeflow.config import Config
from pipeflow.device import choose_device
from pipeflow.errors import ConfigError, PipeflowError, Preempted, WorkerError
from pipeflow.workers.alarm import Alarm, first_line, guard, is_broken_connection
from pipeflow.workers.control import Control
from pipeflow.workers.heartbeat import CAUSE_SECONDS, Monitor, claim_failure
from pipeflow.workers.network import stay_on_this_machine
from pipeflow.workers.preemption import Notice
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.timeline import Timeline
from pipeflow.workers.traffic import Traffic

_START_TIMEOUT = timedelta(minutes=10)
_FAIL_SECONDS = 5.0
NO_TIMEOUT = timedelta(days=365)
"""Groups wait for as long as it takes: lost workers are noticed by broken connections and missing heartbeats."""

_OF_A_MACHINE = ("run.dir", "run.device", "data.path")
"""Options that may differ from worker to worker: paths that lead to one place, and devices."""
_RUNS = itertools.count()


@contextlib.contextmanager
def join_workers(config: Config) -> Iterator["World"]:
    """Joins the workers that the launcher started, for the block, whose end all of them reach together.

    An error in the block is told to the others: `reported` tells whether another worker's came first and has been reported
    there. A connection that breaks inside torch becomes a WorkerError that names what is behind it.

    Raises ConfigError for a device or a backend that cannot be, for more workers than parts, and where workers were
    started with different options.
    """
    world = World(config)
    try:
        world.join()
        yield world
        world.close()
    except Preempted as notice:
        notice.reported = world.rank != 0
        raise
    except PipeflowError as error:
        error.reported = world.fail(error)
        raise
    except RuntimeError as error:
        if not is_broken_connection(error):
            raise
        loss = world.cause_of(error)
        loss.reported = world.fail(loss)
        raise loss from None
    finally:
        # Nobody waits for the others any more: what they do next is no reason to end this process.
        world.closed.set()


class World:
    """This worker among the others, for as long as `join_workers` lasts."""

    def __init__(self, config: Config) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.num_replicas = config.parts.replicas
        """Workers that hold the same parts, before the gather."""
        self.mesh: DeviceMesh | None = None
        """All workers by `part` and `replica`, where parts have replicas and train by themselves."""
        self.alarm = Alarm()
        self.notice = Notice(self.rank)
        self.traffic = Traffic()
        self.device = torch.device("cpu")
        self.backend = "gloo"
        self.timeline: Timeline
        self.control: Control
        self.monitor: Monitor | None = None
        self.closed = threading.Event()
        self._config = config
        self._store: dist.Store | None = None
        self._attempt = ""
        watch = (self.rank, self.alarm, self.closed)
        threading.Thread(target=guard, args=watch, name="pipeflow-guard", daemon=True).start()

    @property
    def stage(self) -> int:
        """Where this worker stands in the line of those that hold different parts."""
        return self.rank // self.num_replicas

    @property
    def num_stages(self) -> int:
        """Workers in that line."""
        return self.size // self.num_replicas

    def join(self) -> None:
        """Meets the other workers, if any, and chooses this one's device and the backend of its links."""
        config = self._config
        group = self._connect() if self.size > 1 else None
        about = self.monitor.about if self.monitor is not None else lambda other: ""
        self.control = Control(self.rank, self.size, group, self.traffic, self.alarm, about)
        self._check_same(config)
        config.check_world_size(self.size)
        self.device = choose_device(config.run.device, int(os.environ.get("LOCAL_RANK", 0)))
        self.backend = self._choose_backend(config)
        self.timeline = Timeline(config.timeline, self.device)

    def _check_same(self, config: Config) -> None:
        """Whether everybody was given the same options, but for those that may be of a machine."""
        everyone = self.control.share(config.to_dict(), "the configuration")
        for rank, other in enumerate(everyone):
            for section, options in everyone[0].items():
                for name, value in options.items():
                    if f"{section}.{name}" not in _OF_A_MACHINE and other[section][name] != value:
                        raise ConfigError(
                            f"{section}.{name}: is {value!r} at worker 0 and {other[section][name]!r} at worker {rank}: "
                            f"start all workers with the same options."
                        )

    def _connect(self) -> dist.ProcessGroup:
        try:
            with self.alarm.telling("waited for the others at the start"):
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
        self._attempt = f"pipeflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_RUNS)}"
        stay_on_this_machine()
        store, _, _ = next(dist.rendezvous("env://", timeout=_START_TIMEOUT))
        self._store = dist.PrefixStore(self._attempt, store)
        store, timeout = self.connect_store(), self._config.run.heartbeat_timeout_s
        self.monitor = Monitor(store, self.rank, self.size, timeout, self.alarm, self.notice, self.traffic)
        dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=_START_TIMEOUT)
        return dist.new_group(backend="gloo", timeout=NO_TIMEOUT)

    def connect_store(self) -> dist.Store | None:
        """A connection to the launcher's store for one thread, since each serves one at a time; None for one worker."""
        if self.size == 1:
            return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
        return dist.PrefixStore(self._attempt, store)

    def _choose_backend(self, config: Config) -> str:
        """NCCL where each worker has a GPU to itself, unless asked otherwise."""
        asked = config.link.backend
        has_gpu = self.device.type == "cuda"
        about = torch.cuda.get_device_properties(self.device) if has_gpu else None
        gpu, model = (str(about.uuid), about.name) if has_gpu else ("", "CPU")
        gpus, models = zip(*self.control.share([[socket.gethostname(), gpu], model], "the devices"))
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

    def watch(self, peer: int) -> None:
        """Has this worker follow the heartbeat of another one, with which it shares a link."""
        if self.monitor is not None:
            self.monitor.watch([peer])

    def tell_parts(self, owners: Sequence[int]) -> None:
        """Which worker holds which parts, for messages about one that is lost before it has told so itself.

        owners: the stage that holds each part.
        """
        if self.monitor is not None:
            stages = [[part for part, owner in enumerate(owners) if owner == stage] for stage in range(self.num_stages)]
            self.monitor.parts = {rank: stages[rank // self.num_replicas] for rank in range(self.size)}

    def replicas_of_parts(self) -> Replicas:
        """The workers that hold this one's parts. All workers call this together."""
        if self.num_replicas == 1:
            return Replicas((self.rank,), self.rank)
        ranks = torch.arange(self.size).view(self.num_stages, self.num_replicas)
        lines = {tuple(line): dist.new_group(line, backend="gloo") for line in ranks.T.tolist()}
        groups = {tuple(same): self._gradient_group(same) for same in ranks.tolist()}
        (line,), (same,) = ([each for each in of if self.rank in each] for of in (lines, groups))
        self.mesh = DeviceMesh.from_group(
            [lines[line], groups[same]], self.device.type, ranks, mesh_dim_names=("part", "replica")
        )
        return Replicas(same, self.rank, self.mesh.get_group("replica"))

    def replicas_of_all(self) -> Replicas:
        """All workers, who hold the whole flow. All call this together."""
        ranks = list(range(self.size))
        return Replicas(tuple(ranks), self.rank, self._gradient_group(ranks))

    def _gradient_group(self, ranks: list[int]) -> dist.ProcessGroup:
        """For those who wait for each other in every batch."""
        return dist.new_group(ranks, backend=self.backend, timeout=timedelta(seconds=self._config.link.timeout_s))

    def fail(self, error: PipeflowError) -> bool:
        """Tells the others of this worker's error. True where another worker's came first and has been said there."""
        if self.monitor is None or error.reported or self.monitor.store_lost:
            return error.reported
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
            self.alarm.wait(CAUSE_SECONDS)
        except PipeflowError as cause:
            return cause
        quiet = "" if self.monitor is None else self.monitor.quiet()
        return WorkerError(
            f"a worker was lost, or its link: a connection of worker {self.rank} to the others broke, while it "
            f"{self.alarm.doing} ({first_line(error)}){quiet}. Start the same command again to resume."
        )

    def close(self) -> None:
        """Ends heartbeat and groups, after all workers have come to the same end."""
        if self.monitor is not None:
            self.control.share("closing", "the end of the run")  # watched still, for as long as rank 0 draws its plots
            self.monitor.close()
            late = WorkerError(f"worker {self.rank}: not all workers came to the end of the run, which is complete.")
            unwatched = threading.Timer(self._config.run.heartbeat_timeout_s, self.alarm.trip, [late])
            unwatched.daemon = True
            unwatched.start()
            # After this nobody needs the store, which may end with rank 0's process.
            self.control.share("end", "the end of the run")
            unwatched.cancel()
            self.control.close()
            dist.destroy_process_group()
