"""Links: the one-way channels that carry `(epoch, step, latent)` from a part to the next, and count every byte.

This is the only file that sends or receives latents. A link has a sending and a receiving end and no way back:

    part k --send--> [up to depth batches] --thread--> wire --thread--> [up to depth batches] --receive--> part k+1

Both ends work in threads of their own, so that batches travel while the parts compute, and so that a part that waits
hears of a stop. Each latent is announced by a header on the CPU; the payload is received only once its header is there,
so a waiting receive never holds up a GPU stream. gloo sends nothing before the receiver has asked for it, which takes a
round trip: headers are asked for ahead, and up to `depth` payloads are on their way at once, so that a link over a long
distance delays the first batch and not the others. Between parts of one worker the link is a queue with the same counts.
"""

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeflow.data.random import generator
from pipeflow.errors import WorkerError
from pipeflow.flow.layers import Shape
from pipeflow.links.codec import Codec, make_codec
from pipeflow.links.wire import _Wire
from pipeflow.workers.alarm import Alarm, first_line
from pipeflow.workers.timeline import RECEIVE, SEND, WAIT, Timeline
from pipeflow.workers.traffic import Traffic

TRAINING, EVALUATION, INITIAL = "latents", "eval", "initial"
_KINDS = (TRAINING, EVALUATION, INITIAL)
_CLOSE, _STOP = -1, -2
_START_SECONDS = 600.0
_START_BATCHES = 2
"""The first batches of each kind may take so long, for what is compiled or loaded; all later ones `link.timeout_s`."""
_LOOK_EVERY = 0.2
"""Seconds from one look at the alarm to the next, while a link ends."""


class Stopped(Exception):
    """The worker in front stopped before batch `step`: no latent comes any more."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class Channel:
    """What both ends of a link know of it."""

    index: int
    """Of the part in front; the link goes to part `index + 1`."""
    shape: Shape
    """Of one latent, without the batch."""
    dtype: str = "float32"
    """In which training latents travel, as in `link.dtype`; all others travel as float32."""
    seed: int = 0
    """The run's, from which both ends draw the same dither."""
    replica: int = 0
    """Of the parts at its ends: each share of a batch has its own dither."""

    def codec(self, kind: str) -> Codec:
        """How latents of this kind are written."""
        return make_codec(self.dtype if kind == TRAINING else "float32", self.shape)

    def encode(self, kind: str, epoch: int, step: int, latent: Tensor) -> Tensor:
        """What travels for a detached latent."""
        assert not latent.requires_grad, "a latent on a link must be detached"
        codec = self.codec(kind)
        return codec.encode(latent, self._dither(codec, epoch, step, latent.device))

    def decode(self, kind: str, epoch: int, step: int, payload: Tensor) -> Tensor:
        """The latent that the next part gets, float32."""
        codec = self.codec(kind)
        return codec.decode(payload, self._dither(codec, epoch, step, payload.device))

    def _dither(self, codec: Codec, epoch: int, step: int, device: torch.device) -> torch.Generator | None:
        if not codec.needs_generator:
            return None
        replica = (self.replica,) if self.replica else ()
        return generator(self.seed, "dither", self.index, epoch, step, *replica, device=device)

    def __str__(self) -> str:
        replica = f", replica {self.replica}" if self.replica else ""
        return f"link {self.index} (part {self.index} to part {self.index + 1}{replica})"


class LocalLink:
    """A link between two parts of one worker."""

    def __init__(self, channel: Channel, traffic: Traffic):
        self.channel = channel
        self.waited = 0.0
        self._traffic = traffic
        self._waiting: deque = deque()

    def send(self, kind: str, epoch: int, step: int, latent: Tensor) -> None:
        """Hands on a detached latent, [batch, *shape]."""
        payload = self.channel.encode(kind, epoch, step, latent)
        self._traffic.add(kind, self.channel.index, self.channel.index + 1, payload.nbytes)
        self._waiting.append(((kind, epoch, step), payload))

    def receive(self, kind: str, epoch: int, step: int) -> Tensor:
        """The latent of this batch, float32."""
        label, payload = self._waiting.popleft()
        _check_label(self.channel, label, (kind, epoch, step))
        return self.channel.decode(kind, epoch, step, payload)

    def stop(self, epoch: int, step: int) -> None:
        """Nobody to tell: whoever holds both parts knows."""

    def close(self) -> None:
        """Nothing to end."""


class _Threads:
    """The two threads of an end: one begins what the other finishes, in the same order."""

    def __init__(self, name: str, wire: _Wire, begin: Callable[[], None], finish: Callable[[], None], lost: Callable):
        """lost: told of any exception, for the waiting thread must hear of it."""
        self._wire = wire
        self._lost = lost
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True) for work in (begin, finish)
        ]
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float, alarm: Alarm, late: str) -> None:
        """Waits for the end of both. Raises what the alarm was tripped with, or WorkerError with the text of `late`."""
        end = time.monotonic() + timeout
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_LOOK_EVERY)
                alarm.check()
                if thread.is_alive() and time.monotonic() > end:
                    raise WorkerError(late)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            self._wire.enter_thread()
            work()
        except Exception as error:
            self._lost(error)


class SendingEnd:
    """The end of a link at the worker of the part in front."""

    def __init__(
        self,
        channel: Channel,
        wire: _Wire,
        depth: int,
        timeout: float,
        traffic: Traffic,
        alarm: Alarm,
        timeline: Timeline,
        rank: int,
    ):
        self.channel = channel
        self.waited = 0.0
        """Seconds that the computing thread has waited here."""
        self._wire = wire
        self._timeline = timeline
        self._timeout = timeout
        self._patience = _Patience(timeout)
        self._traffic = traffic
        self._alarm = alarm
        self._rank = rank
        self._depth = depth
        self._taken: queue.Queue = queue.Queue(depth)  # an entry for each batch that is waiting or on its way
        self._outbox: queue.Queue = queue.Queue()
        self._going: queue.Queue = queue.Queue()
        self._threads = _Threads(str(channel), wire, self._begin, self._finish, self._lose)

    def send(self, kind: str, epoch: int, step: int, latent: Tensor) -> None:
        """Hands on a detached latent, [batch, *shape]; waits while `depth` batches are on their way."""
        payload = self.channel.encode(kind, epoch, step, latent)
        self._traffic.add(kind, self.channel.index, self.channel.index + 1, payload.nbytes)
        item = ((_KINDS.index(kind), epoch, step, len(latent)), payload, self._wire.ready())
        timeout, name = self._patience(kind)
        doing = f"waited to send the {kind} of epoch {epoch}, step {step}"
        with _waiting(self, self._timeline, f"for room, {step}"):
            self._alarm.put(
                self._taken,
                None,
                timeout,
                lambda: self._alarm.too_late(
                    self._wire.peer,
                    f"{self.channel}: worker {self._wire.peer} took nothing for {timeout:g} s ({name}) "
                    f"while worker {self._rank} {doing}.",
                ),
                doing,
            )
        self._outbox.put(item)

    def stop(self, epoch: int, step: int) -> None:
        """Tells the other end, behind all latents, that the batches from `step` on do not come."""
        self._outbox.put(((_STOP, epoch, step, 0), None, None))

    def close(self) -> None:
        """Sends what is still waiting, then the end."""
        self._outbox.put(None)
        self._threads.join(
            self._timeout,
            self._alarm,
            f"{self.channel}: worker {self._wire.peer} did not take what was left for {self._timeout:g} s "
            f"(link.timeout_s) at the end of the link.",
        )
        self._wire.close()

    def _begin(self) -> None:
        while (item := self._outbox.get()) is not None:
            header, payload, ready = item
            if payload is not None:
                # Behind the computation: a receive that NCCL has begun would occupy the other GPU until then.
                self._wire.wait_until(ready)
            self._wire.send_header(header)
            self._traffic.add("control", self._rank, self._wire.peer, 8 * len(header))
            if payload is not None:
                self._going.put((header[2], self._wire.send(payload, ready)))
        for _ in range(self._depth):  # one for each that the other end has asked for
            self._wire.send_header((_CLOSE, 0, 0, 0))
            self._traffic.add("control", self._rank, self._wire.peer, 8 * 4)
        self._going.put(None)

    def _finish(self) -> None:
        while (item := self._going.get()) is not None:
            step, gone = item
            with self._timeline.span(SEND, f"send {step}"):
                gone()
            self._taken.get()

    def _lose(self, error: Exception) -> None:
        self._alarm.trip(_lost(self.channel, self._wire.peer, self._rank, self._alarm.doing, error))


class ReceivingEnd:
    """The end of a link at the worker of the part behind."""

    def __init__(
        self,
        channel: Channel,
        wire: _Wire,
        depth: int,
        timeout: float,
        alarm: Alarm,
        timeline: Timeline,
        rank: int,
    ):
        self.channel = channel
        self.waited = 0.0
        """Seconds that the computing thread has waited here."""
        self._wire = wire
        self._timeline = timeline
        self._timeout = timeout
        self._patience = _Patience(timeout)
        self._alarm = alarm
        self._rank = rank
        self._inbox: queue.Queue = queue.Queue()
        self._coming: queue.Queue = queue.Queue()
        self._room = threading.Semaphore(depth)
        self._depth = depth
        self._threads = _Threads(str(channel), wire, self._begin, self._finish, self._lose)

    def receive(self, kind: str, epoch: int, step: int) -> Tensor:
        """The latent of this batch, float32.

        Raises WorkerError when another comes, or none in time, and Stopped when none will come.
        """
        timeout, name = self._patience(kind)
        doing = f"waited for the {kind} of epoch {epoch}, step {step}"
        with _waiting(self, self._timeline, f"for {step}"):
            label, payload, event = self._alarm.get(
                self._inbox,
                timeout,
                lambda: self._alarm.too_late(
                    self._wire.peer,
                    f"{self.channel}: nothing came from worker {self._wire.peer} for {timeout:g} s "
                    f"({name}) while worker {self._rank} {doing}.",
                ),
                doing,
            )
        if label[0] == _STOP:
            raise Stopped(label[2])
        self._room.release()
        _check_label(self.channel, label, (kind, epoch, step))
        self._wire.arrived(payload, event)
        return self.channel.decode(kind, epoch, step, payload)

    def close(self) -> None:
        """Waits for the sender's end."""
        self._threads.join(
            self._timeout,
            self._alarm,
            f"{self.channel}: worker {self._wire.peer} did not end the link for {self._timeout:g} s (link.timeout_s).",
        )
        self._wire.close()

    def _begin(self) -> None:
        asked = deque(self._wire.receive_header() for _ in range(self._depth))
        while True:
            kind, epoch, step, batch = asked.popleft()()
            if kind == _CLOSE:
                break
            if kind == _STOP:
                self._coming.put(((kind, epoch, step), None))
                asked.append(self._wire.receive_header())
                continue
            self._room.acquire()
            label = (_KINDS[kind], epoch, step)
            codec = self.channel.codec(label[0])
            # The payload before the next header: it is what the other end waits to send.
            self._coming.put((label, self._wire.receive(codec.payload_shape(batch), codec.dtype)))
            asked.append(self._wire.receive_header())
        for header in asked:
            header()
        self._coming.put(None)

    def _finish(self) -> None:
        while (item := self._coming.get()) is not None:
            label, come = item
            if come is None:
                self._inbox.put((label, None, None))
                continue
            with self._timeline.span(RECEIVE, f"receive {label[2]}"):
                payload, event = come()
            self._inbox.put((label, payload, event))

    def _lose(self, error: Exception) -> None:
        self._alarm.trip(_lost(self.channel, self._wire.peer, self._rank, self._alarm.doing, error))


class _Patience:
    """How long an end waits for a latent."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._asked: Counter[str] = Counter()

    def __call__(self, kind: str) -> tuple[float, str]:
        """Seconds for the next of this kind, and where they come from."""
        self._asked[kind] += 1
        if self._asked[kind] <= _START_BATCHES and self._timeout < _START_SECONDS:
            return _START_SECONDS, "at the start"
        return self._timeout, "link.timeout_s"


@contextmanager
def _waiting(end: "SendingEnd | ReceivingEnd", timeline: Timeline, name: str) -> Iterator[None]:
    """Counts the seconds of the computing thread inside it as waited at this end."""
    start = time.perf_counter()
    with timeline.span(WAIT, name):
        yield
    end.waited += time.perf_counter() - start


Link = LocalLink | SendingEnd | ReceivingEnd


def _check_label(channel: Channel, label: tuple, expected: tuple) -> None:
    if label != expected:
        raise WorkerError(
            f"{channel}: expected the {expected[0]} of epoch {expected[1]}, step {expected[2]}, but the {label[0]} of "
            f"epoch {label[1]}, step {label[2]} came: the workers do not follow the same schedule. Start all with the "
            f"same configuration."
        )


def _lost(channel: Channel, peer: int, rank: int, doing: str, error: Exception) -> WorkerError:
    return WorkerError(
        f"worker {peer} was lost: {channel} to worker {rank} broke, while worker {rank} {doing} ({first_line(error)}). "
        f"Start the same command again to resume."
    )
