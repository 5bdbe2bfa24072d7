"""The workers of a run: who this one is, on which device, and how it reaches the others.

World reads what torchrun and Ray Train both set: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. A single process
is a world of size 1, without torch.distributed.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pipeflow.config import Config
from pipeflow.device import choose_device
from pipeflow.errors import ConfigError, PipeflowError, Preempted, WorkerError, first_line
from pipeflow.workers import parent
from pipeflow.workers.alarm import Alarm, is_broken_connection
from pipeflow.workers.control import Control, check_same_options
from pipeflow.workers.environment import check_address, not_met, read_place
from pipeflow.workers.groups import destroy_groups
from pipeflow.workers.heartbeat import Monitor, claim_in_time
from pipeflow.workers.meeting import agree_on_prefix
from pipeflow.workers.neighbour import Neighbour
from pipeflow.workers.network import stay_on_this_machine
from pipeflow.workers.preemption import Notice
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.timeline import Timeline
from pipeflow.workers.traffic import Traffic

if TYPE_CHECKING:
    from torch._C._distributed_c10d import PrefixStore, TCPStore
else:
    from torch.distributed import PrefixStore, TCPStore

_START_TIMEOUT = timedelta(minutes=10)
_NO_TIMEOUT = timedelta(days=365)
"""Groups wait for as long as it takes: broken connections and missing heartbeats tell of lost workers."""
_STORE_TIMEOUT = timedelta(seconds=30)
_CAUSE_SECONDS = 3.0
"""The monitor hears within these seconds why a connection broke inside torch."""
_SPREAD_SECONDS = 2.0
"""All monitors read an error in the store within this time."""


@contextmanager
def join_workers(config: Config) -> Iterator["World"]:
    """Joins the workers that the launcher started, for the block, whose end all of them reach together.

    An error in the block is told to the other workers; `reported` says whether the error of another worker came first and
    is shown there. A connection that breaks inside torch becomes a WorkerError that names the cause.

    Raises:
        ConfigError: there is no such device or backend, there are more workers than parts, or workers were started with
            different options.
        WorkerError: the workers did not come together, or one was lost.
    """
    world = World(config)
    try:
        world.join()
        yield world
        world.leave()
    except Preempted as notice:
        notice.reported = world.rank != 0
        raise
    except PipeflowError as error:
        world.fail(error)
        raise
    except Exception as error:
        if not is_broken_connection(error):
            # A bug, of pipeflow or of a function that was given: its traceback is shown here, and the others leave quietly.
            told = WorkerError(f"worker {world.rank} failed: {type(error).__name__}: {first_line(error)}")
            world.fail(told)
            if told.reported:  # all of them may have met it
                raise told from None
            raise
        loss = world.cause_of(error)
        world.fail(loss)
        raise loss from None
    except KeyboardInterrupt:
        world.fail(WorkerError(f"worker {world.rank} was interrupted (SIGINT)."))
        raise
    finally:
        world.close()


class World:
    """This worker among the others, for as long as `join_workers` lasts."""

    def __init__(self, config: Config) -> None:
        self.launched = read_place()
        self.rank, self.size = self.launched.rank, self.launched.size
        self.num_replicas = config.parts.replicas
        """Workers that hold the same parts, before the gather."""
        self.alarm = Alarm(self.rank)
        self.notice = Notice(self.rank)
        self.traffic = Traffic()
        self.device = torch.device("cpu")
        self.backend = "gloo"
        self.timeline: Timeline
        self.control: Control
        self.monitor: Monitor | None = None
        """The watch over the other workers; None for a single one."""
        self._neighbour: Neighbour | None = None
        self._resources = ExitStack()
        self._resources.callback(self.alarm.start_guard().set)
        self._resources.callback(self.notice.close)
        self._config = config
        self._key_prefix = ""

    @property
    def place(self) -> int:
        """This worker's place in the line of those that hold different parts; replicas share a place."""
        return self.rank // self.num_replicas

    @property
    def num_places(self) -> int:
        """Places in that line."""
        return self.size // self.num_replicas

    def join(self) -> None:
        """Meets the other workers, if any, and chooses this one's device and the backend of its links."""
        config = self._config
        group = self._connect() if self.size > 1 else None
        self.control = Control(self.size, group, self.traffic, self.alarm, config.run.control_timeout_s)
        self._resources.callback(self.control.stop)
        if self.monitor is not None:
            self.monitor.begun, self.control.begun_by = self.control.begun.copy, self.monitor.begun_by
        check_same_options(self.control, config)
        config.check_world_size(self.size)
        self.device = choose_device(config.run.device, self.launched.local_rank)
        self.backend = self._choose_backend()
        self.timeline = Timeline(config.timeline, self.device)

    def _connect(self) -> dist.ProcessGroup | None:
        """The control group, over gloo."""
        try:
            with self.alarm.telling("waited for the others at the start"):
                stay_on_this_machine()
                return self.alarm.call(self._meet, self.alarm.doing)
        except RuntimeError as error:
            raise not_met(self.launched, error) from None

    def _meet(self) -> dist.ProcessGroup | None:
        """Connects to the store and to the other workers; the control group."""
        check_address(self.launched)
        store, _, _ = next(rendezvous("env://", timeout=_START_TIMEOUT))
        # A restart, or a second run in the same workers, must not meet the keys of the one before.
        self._key_prefix = agree_on_prefix(store, self.rank, self.size, _START_TIMEOUT.total_seconds())
        self._store = PrefixStore(self._key_prefix, store)
        store, timeout = self._open_store(), self._config.run.heartbeat_timeout_s
        self.monitor = Monitor(store, self.launched, timeout, self.alarm, self.notice, self.traffic)
        self._resources.callback(self.monitor.abandon)
        dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=_START_TIMEOUT)
        self._resources.callback(destroy_groups)
        if self.launched.num_machines > 1:
            watched = self.new_group(range(self.size), "gloo")
            assert watched is not None, "all workers are in this group"
            self._neighbour = Neighbour(self.rank, self.size, watched, self.monitor.lose)
            self._resources.callback(self._neighbour.abandon)
        return self.new_group(range(self.size), "gloo")

    def connect_store(self) -> PrefixStore | None:
        """A new connection to the launcher's store for one thread, since a connection serves one at a time.

        None for a single worker.
        """
        return self._open_store() if self.size > 1 else None

    def _open_store(self) -> PrefixStore:
        address, port = self.launched.address, self.launched.port
        return PrefixStore(self._key_prefix, TCPStore(address, port, is_master=False, timeout=_STORE_TIMEOUT))

    def _choose_backend(self) -> str:
        """NCCL where each worker has a GPU to itself, unless asked otherwise."""
        asked = self._config.link.backend
        gpu, model = "", "CPU"
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            gpu, model = str(properties.uuid), properties.name
        everyone = self.control.share([socket.gethostname(), gpu, model], "the devices")
        models = sorted({each[2] for each in everyone})
        if self._config.link.dtype == "int8" and len(models) > 1:
            raise ConfigError(
                f"link.dtype: int8 needs all workers on the CPU, or all on GPUs of one model, but here are "
                f"{', '.join(models)}: both ends of a link draw one dither, and their random numbers differ. "
                f"Use bfloat16."
            )
        if asked == "nccl" and not gpu:
            raise ConfigError("link.backend: nccl moves CUDA tensors only, this run is on the CPU: use auto or gloo.")
        gpus = {(host, uuid) for host, uuid, _ in everyone if uuid}
        is_shared = len(gpus) < self.size
        if asked == "nccl" and is_shared:
            raise ConfigError("link.backend: nccl needs a GPU for each worker, here some share one: use auto or gloo.")
        return "gloo" if is_shared or asked == "gloo" else "nccl"

    def watch(self, peer: int) -> None:
        """Follows the heartbeat of another worker, with which this one shares a link."""
        if self.monitor is not None:
            self.monitor.watch(peer)

    def tell_parts(self, owners: Sequence[int]) -> None:
        """Sets which worker holds which parts, for messages about one that is lost before its first beat.

        owners: the place that holds each part.
        """
        if self.monitor is not None:
            held = [[part for part, owner in enumerate(owners) if owner == place] for place in range(self.num_places)]
            self.monitor.parts = {rank: held[rank // self.num_replicas] for rank in range(self.size)}

    def new_group(
        self, ranks: Sequence[int], backend: str, timeout: timedelta = _NO_TIMEOUT
    ) -> dist.ProcessGroup | None:
        """A process group of these ranks, None on the others. All workers make all groups, in one order."""
        group = dist.new_group(list(ranks), backend=backend, timeout=timeout)
        return group if isinstance(group, dist.ProcessGroup) else None

    def replicas_of_parts(self) -> Replicas:
        """The workers that hold this one's parts. All workers call this together."""
        if self.num_replicas == 1:
            return Replicas((self.rank,), self.rank)
        ranks = range(self.size)
        rows = [ranks[start : start + self.num_replicas] for start in ranks[:: self.num_replicas]]
        groups = [self._gradient_group(row) for row in rows]
        return Replicas(tuple(rows[self.place]), self.rank, groups[self.place])

    def replicas_of_all(self) -> Replicas:
        """All workers, which hold the whole flow. All call this together."""
        return Replicas(tuple(range(self.size)), self.rank, self._gradient_group(range(self.size)))

    def pipeline_line(self) -> dist.ProcessGroup | None:
        """The workers of this one's replica, one for each place in line. All workers call this together."""
        lines = [range(self.size)[replica :: self.num_replicas] for replica in range(self.num_replicas)]
        return [self._gradient_group(line) for line in lines][self.rank % self.num_replicas]

    def _gradient_group(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """A group that waits no longer than links do: its workers wait for each other in every batch."""
        return self.new_group(ranks, self.backend, timedelta(seconds=self._config.link.timeout_s))

    def fail(self, error: PipeflowError) -> None:
        """Tells the others of this worker's error.

        Where another's came first and is shown there, this one is marked as reported and takes its words: its own tell only
        what followed, such as a connection that broke. A store that ends with this process stays until all have read it.
        """
        if self.monitor is None:
            return
        is_worker_0s = self.launched.store_is_worker_0s
        if is_worker_0s and self.rank == 0:
            self._resources.callback(time.sleep, _SPREAD_SECONDS)
        if error.reported:
            return
        if not is_worker_0s and (self.monitor.store_lost or parent.trouble()):
            error.reported = parent.is_said_elsewhere()
            return
        first = claim_in_time(self._store, self.rank, error)
        if first is not None and first[0] != self.rank:
            error.reported, error.args, error.follows_mistake = True, (first[1],), first[2]
        elif first is None and is_worker_0s and self.rank != 0 and isinstance(error, WorkerError):
            # The connection that broke at this worker may be to one that has left for the same reason.
            error.args = self.monitor.loss_of_store("no connection").args

    def cause_of(self, error: Exception) -> PipeflowError:
        """The cause of a connection that broke inside torch, if the monitor hears of it, or else all that is known."""
        try:
            self.alarm.listen(_CAUSE_SECONDS)
        except PipeflowError as cause:
            return cause
        missed = "" if self.monitor is None else self.monitor.missed()
        return WorkerError(
            f"a worker was lost, or its link: a connection of worker {self.rank} to the others broke, while it "
            f"{self.alarm.doing} ({first_line(error)}){missed}. Start the same command again to resume."
        )

    def close(self) -> None:
        """Ends what waits for the others, however the run ended: what they do next is no reason to end this process."""
        self._resources.close()

    def leave(self) -> None:
        """Ends the heartbeat, after all workers have come to the same end."""
        if self.monitor is None:
            return
        self.control.share("closing", "the end of the run")  # still under watch, for as long as rank 0 finishes the run
        if self._neighbour is not None:
            self._neighbour.say_end()
        self.monitor.stop()
        late = WorkerError(f"worker {self.rank}: not all workers reached the end of the run, which is complete.")
        deadline = time.monotonic() + self._config.run.heartbeat_timeout_s
        self.alarm.watches = [lambda: self.alarm.trip(late) if time.monotonic() > deadline else None]
        # After this nobody needs the store, which may end with rank 0's process.
        self.control.share("end", "the end of the run")
        self.alarm.watches = []
