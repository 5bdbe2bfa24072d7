"""Control: phases, results and parts between rank 0 and the others, over a gloo group of its own.

Values travel as JSON, never pickled. Each operation runs in a thread that may block for as long as it takes, while the
caller waits through the alarm: a worker that waits for a fine-tuning of hours neither spins, times out, nor misses the
loss of rank 0. A message that both workers have begun has a time-out: their connection may be dead, as behind a firewall
that forgets it, while both live. Each operation names what it carries, for the message when the other worker is lost.
"""

import json
import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeflow.config import Config
from pipeflow.errors import ConfigError, first_line
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.traffic import Traffic

_MAY_DIFFER = ("run.dir", "run.device", "data.path")
"""Options that may differ from worker to worker: devices, and paths that lead to one place."""


class Control:
    """The control group of one worker. With one worker it hands values back and sends nothing."""

    def __init__(
        self, world_size: int, group: dist.ProcessGroup | None, traffic: Traffic, alarm: Alarm, timeout: float = 300.0
    ):
        """timeout: seconds for a message that both workers have begun, `run.control_timeout_s`."""
        self.begun: Counter[int] = Counter()
        """Messages that this worker has begun to send to, or to receive from, each other one."""
        self.begun_by: Callable[[int], int] = lambda other: 0
        """Messages with this worker that another one has begun, as far as is known."""
        self.rank = alarm.rank
        self.world_size = world_size
        self.group = group
        self._traffic = traffic
        self._alarm = alarm
        self._timeout = timeout
        self._requests: queue.Queue[tuple[Callable[[], object], queue.SimpleQueue[Exception | None]] | None]
        self._requests = queue.Queue()
        if group is not None:
            threading.Thread(target=self._serve, name="pipeflow-control", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread; nothing can be sent any more."""
        self._requests.put(None)

    def broadcast(self, value: Any = None, what: str = "a decision") -> Any:
        """Rank 0's value, on every rank."""
        if self.rank == 0:
            for other in range(1, self.world_size):
                self.send_json(value, other, what)
            return value
        return self.receive_json(0, what)

    def gather(self, value: Any, what: str = "an answer") -> list[Any]:
        """Everybody's values in the order of ranks on rank 0, an empty list elsewhere."""
        if self.rank != 0:
            self.send_json(value, 0, what)
            return []
        return [value, *(self.receive_json(other, what) for other in range(1, self.world_size))]

    def share(self, value: Any, what: str = "an answer") -> list[Any]:
        """Everybody's values in the order of ranks, on every rank."""
        return list(self.broadcast(self.gather(value, what), what))

    def send(self, tensor: Tensor, target: int, kind: str, what: str = "") -> None:
        """Sends a tensor, whose size the target knows, counted under `kind`."""
        self._traffic.add(kind, self.rank, target, tensor.nbytes)
        staged = tensor.detach().cpu().contiguous()
        doing = f"waited to send worker {target} {what or kind}"
        self._call(lambda: dist.send(staged, target, group=self.group), target, doing)

    def receive(self, tensor: Tensor, source: int, what: str = "a tensor") -> Tensor:
        """Receives into a CPU tensor, and returns it."""
        self._call(lambda: dist.recv(tensor, source, group=self.group), source, f"waited for {what} of worker {source}")
        return tensor

    def send_json(self, value: Any, target: int, what: str) -> None:
        """Sends plain values to one worker. what: their name, for the message where the worker is lost."""
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        self.send(torch.tensor([payload.numel()]), target, "control", what)
        self.send(payload, target, "control", what)

    def receive_json(self, source: int, what: str) -> Any:
        """The plain values that one worker sends."""
        size = int(self.receive(torch.empty(1, dtype=torch.int64), source, what))
        return json.loads(self.receive(torch.empty(size, dtype=torch.uint8), source, what).numpy().tobytes())

    def _call(self, operation: Callable[[], object], peer: int, doing: str) -> None:
        answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._requests.put((operation, answer))
        self.begun[peer] += 1
        number, lost = self.begun[peer], f"worker {peer} was lost{self._alarm.about(peer)}"

        def late() -> str:
            silent = f"nothing came over its control connection to worker {self.rank} for {self._timeout:g} s"
            return str(self._alarm.loss(f"{lost}: {silent} (run.control_timeout_s), though both had begun a message"))

        def wait(seconds: float) -> Exception | None:
            try:
                return answer.get(timeout=seconds)
            except queue.Empty:
                if self.begun_by(peer) < number:  # it may compute for hours before that
                    raise
            return self._alarm.keep_trying(lambda left: answer.get(timeout=left), doing, self._timeout, late)

        with self._alarm.telling(doing):
            error = self._alarm.keep_trying(wait, doing)
            if error is not None:
                raise self._alarm.loss(f"{lost}: its control connection to worker {self.rank} broke", first_line(error))

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            operation, answer = request
            try:
                operation()
                answer.put(None)
            except Exception as error:
                answer.put(error)


def check_same_options(control: Control, config: Config) -> None:
    """Raises ConfigError where workers were started with different options. All of them call this together."""
    everyone = control.share(config.to_dict(), "the configuration")
    for rank, other in enumerate(everyone):
        for section, options in everyone[0].items():
            for name, value in options.items():
                if f"{section}.{name}" not in _MAY_DIFFER and other[section][name] != value:
                    raise ConfigError(
                        f"{section}.{name}: is {value!r} at worker 0 and {other[section][name]!r} at worker {rank}: "
                        f"start all workers with the same options."
                    )
