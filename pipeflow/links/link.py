"""Links: the one-way channels that carry `(epoch, step, latent)` from a part to the next, and count every byte.

A training batch may travel in several micro-batches, each a latent with a header of its own.
A link has a sending and a receiving end and no way back:

    part k --send--> [up to depth latents] --thread--> wire --thread--> [up to depth latents] --receive--> part k+1

Both ends work in threads of their own, so that batches travel while the parts compute, and a part that waits hears of a
stop. Each latent is announced by a header on the CPU; the payload is received only once its header is there, so a waiting
receive never holds up a GPU stream. gloo sends nothing before the receiver has asked for it, which takes a round trip:
headers are asked for ahead, and up to `depth` payloads are on their way at once, so a link over a long distance delays the
first batch and not the others. Between parts of one worker the link is a queue with the same counts.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import Tensor

from pipeflow.config import LinkConfig
from pipeflow.errors import first_line
from pipeflow.links.channel import KINDS, Channel, Label, describe
from pipeflow.links.wire import Event, Header, Wire
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.timeline import RECEIVE, SEND, WAIT, Timeline
from pipeflow.workers.traffic import Traffic

T = TypeVar("T")

_CLOSE, _STOP = -1, -2
"""Kinds of headers without a payload."""
_START_SECONDS = 600.0
_START_BATCHES = 2
"""The first batches of each kind may take `_START_SECONDS`, while things are compiled or loaded; later `link.timeout_s`."""


class Stopped(Exception):
    """The worker in front stopped before batch `step`: no latent comes any more."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Link:
    """A link, as the worker of either part sees it. Between workers, an end only sends or only receives."""

    channel: Channel
    waited = 0.0
    """Seconds that the computing thread has waited here."""

    def send(self, kind: str, epoch: int, step: int, latent: Tensor, micro_batch: int = 0) -> None:
        """Hands on a detached latent, [batch, *shape]."""
        raise AssertionError(f"{self.channel}: this end only receives")

    def receive(self, kind: str, epoch: int, step: int, micro_batch: int = 0) -> Tensor:
        """The latent of this batch, or micro-batch of it: [batch, *shape], float32."""
        raise AssertionError(f"{self.channel}: this end only sends")

    def stop(self, epoch: int, step: int) -> None:
        """Tells the next part, behind all latents, that the batches from `step` on do not come."""

    def close(self) -> None:
        """Ends the link, after everything that was sent has arrived."""


class LocalLink(Link):
    """A link between two parts of one worker, which knows by itself where it stops."""

    def __init__(self, channel: Channel, traffic: Traffic):
        self.channel = channel
        self._traffic = traffic
        self._waiting: deque[tuple[Label, Tensor]] = deque()

    def send(self, kind: str, epoch: int, step: int, latent: Tensor, micro_batch: int = 0) -> None:
        label = (kind, epoch, step, micro_batch)
        payload = self.channel.encode(label, latent)
        self._traffic.add(kind, self.channel.source, self.channel.target, payload.nbytes)
        self._waiting.append((label, payload))

    def receive(self, kind: str, epoch: int, step: int, micro_batch: int = 0) -> Tensor:
        label, payload = self._waiting.popleft()
        self.channel.check_label(label, (kind, epoch, step, micro_batch))
        return self.channel.decode(label, payload)


@dataclass(eq=False)
class LinkEnd(Link, ABC):
    """One end of a link between two workers: two threads, of which one begins what the other finishes, in one order."""

    channel: Channel
    wire: Wire
    config: LinkConfig
    traffic: Traffic
    alarm: Alarm
    timeline: Timeline

    late_at_end: ClassVar[str]
    """The other end's failure to end the link in time, in the words of a message."""

    def __post_init__(self) -> None:
        self._num_asked: Counter[str] = Counter()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        for work in (self._begin, self._finish):
            threading.Thread(target=self._run, args=(work,), name=str(self.channel), daemon=True).start()

    @abstractmethod
    def _begin(self) -> None:
        """The work of the first thread."""

    @abstractmethod
    def _finish(self) -> None:
        """The work of the second thread."""

    def _run(self, work: Callable[[], None]) -> None:
        try:
            self.wire.enter_thread()
            work()
            self._ended.put(None)
        except Exception as error:  # any: the computing thread must hear of it
            event = f"worker {self.wire.peer} was lost: {self.channel} to worker {self.alarm.rank} broke"
            self.alarm.trip(self.alarm.loss(event, first_line(error)))

    def _wait(self, attempt: Callable[[float], T], kind: str, span: str, doing: str, late: str) -> T:
        """The result of an attempt on a queue of this end, which the computing thread waits for.

        late: the other end's failure, in the words of a message, if that takes too long.
        """
        timeout, source = self.config.timeout_s, "link.timeout_s"
        self._num_asked[kind] += 1
        if self._num_asked[kind] <= _START_BATCHES * self.channel.messages(kind) and timeout < _START_SECONDS:
            timeout, source = _START_SECONDS, "at the start"
        text = f"{self.channel}: {late} for {timeout:g} s ({source}) while worker {self.alarm.rank} {doing}."
        start = time.perf_counter()
        with self.timeline.span(WAIT, span):
            result = self.alarm.keep_trying(
                attempt, doing, timeout, lambda: self.alarm.wait_for_culprit(self.wire.peer, text)
            )
        self.waited += time.perf_counter() - start
        return result

    def close(self) -> None:
        timeout = self.config.timeout_s
        late = f"{self.channel}: worker {self.wire.peer} {self.late_at_end} for {timeout:g} s (link.timeout_s)."
        doing = f"waited for the end of {self.channel}"
        for _ in (self._begin, self._finish):
            self.alarm.keep_trying(lambda seconds: self._ended.get(timeout=seconds), doing, timeout, lambda: late)
        self.wire.close()


class SendingEnd(LinkEnd):
    """The end of a link at the worker of the part in front."""

    late_at_end = "did not take what was left at the end of the link"

    def __post_init__(self) -> None:
        # An entry for each latent that has not gone yet.
        self._room: queue.Queue[None] = queue.Queue(self.config.depth)
        self._outbox: queue.Queue[tuple[Header, Tensor | None, Event | None] | None] = queue.Queue()
        self._going: queue.Queue[tuple[int, Callable[[], object]] | None] = queue.Queue()
        super().__post_init__()

    def send(self, kind: str, epoch: int, step: int, latent: Tensor, micro_batch: int = 0) -> None:
        """Hands on a detached latent, [batch, *shape]; waits while `depth` latents are on their way."""
        label = (kind, epoch, step, micro_batch)
        self.send_payload(label, self.channel.encode(label, latent), len(latent))

    def send_payload(self, label: Label, payload: Tensor, num_images: int) -> None:
        """Hands on what the channel has encoded."""
        kind, epoch, step, micro_batch = label
        self.traffic.add(kind, self.channel.source, self.channel.target, payload.nbytes)
        item = ((KINDS.index(kind), epoch, step, micro_batch, num_images), payload, self.wire.record_event())
        self._wait(
            lambda seconds: self._room.put(None, timeout=seconds),
            kind,
            span=f"for room, {step}",
            doing=f"waited to send the {describe(label)}",
            late=f"worker {self.wire.peer} took nothing",
        )
        self._outbox.put(item)

    def stop(self, epoch: int, step: int) -> None:
        self._outbox.put(((_STOP, epoch, step, 0, 0), None, None))

    def close(self) -> None:
        self._outbox.put(None)
        super().close()

    def _begin(self) -> None:
        while (item := self._outbox.get()) is not None:
            header, payload, computed = item
            if computed is not None:
                # The header follows the computation, since a receive that NCCL has begun occupies the other GPU.
                computed.synchronize()
            self._send_header(header)
            if payload is not None:
                self._going.put((header[2], self.wire.send(payload)))
        for _ in range(self.config.depth):  # as many as the other end has asked for
            self._send_header((_CLOSE, 0, 0, 0, 0))
        self._going.put(None)

    def _finish(self) -> None:
        while (item := self._going.get()) is not None:
            step, wait_until_gone = item
            with self.timeline.span(SEND, f"send {step}"):
                wait_until_gone()
            self._room.get()

    def _send_header(self, header: Header) -> None:
        self.wire.send_header(header)
        self.traffic.add("control", self.alarm.rank, self.wire.peer, 8 * len(header))


class ReceivingEnd(LinkEnd):
    """The end of a link at the worker of the part behind."""

    late_at_end = "did not end the link"

    def __post_init__(self) -> None:
        self._room = threading.Semaphore(self.config.depth)
        self._coming: queue.Queue[tuple[Label, Callable[[], tuple[Tensor, Event | None]]] | Stopped | None]
        self._coming = queue.Queue()
        self._inbox: queue.Queue[tuple[Label, Tensor, Event | None] | Stopped] = queue.Queue()
        super().__post_init__()

    def receive(self, kind: str, epoch: int, step: int, micro_batch: int = 0) -> Tensor:
        """The latent of this batch, or micro-batch of it: [batch, *shape], float32.

        Raises WorkerError when another comes, or none in time, and Stopped when none will come.
        """
        label = (kind, epoch, step, micro_batch)
        return self.channel.decode(label, self.receive_payload(label))

    def receive_payload(self, expected: Label) -> Tensor:
        """Receives a payload, which the channel decodes. Raises as `receive` does."""
        kind, _, step, _ = expected
        item = self._wait(
            lambda seconds: self._inbox.get(timeout=seconds),
            kind,
            span=f"for {step}",
            doing=f"waited for the {describe(expected)}",
            late=f"nothing came from worker {self.wire.peer}",
        )
        if isinstance(item, Stopped):
            raise item
        label, payload, arrived = item
        self._room.release()
        self.channel.check_label(label, expected)
        self.wire.use_after(payload, arrived)
        return payload

    def _begin(self) -> None:
        asked = deque(self.wire.receive_header() for _ in range(self.config.depth))
        while True:
            kind, epoch, step, micro_batch, num_images = asked.popleft()()
            if kind == _CLOSE:
                break
            if kind == _STOP:
                self._coming.put(Stopped(step))
            else:
                self._room.acquire()
                codec = self.channel.codec(KINDS[kind])
                # The payload before the next header: it is what the other end waits to send.
                receiving = self.wire.receive(codec.payload_shape(num_images), codec.dtype)
                self._coming.put(((KINDS[kind], epoch, step, micro_batch), receiving))
            asked.append(self.wire.receive_header())
        for wait_for_header in asked:
            wait_for_header()
        self._coming.put(None)

    def _finish(self) -> None:
        while (item := self._coming.get()) is not None:
            if isinstance(item, Stopped):
                self._inbox.put(item)
                continue
            label, wait_for_payload = item
            with self.timeline.span(RECEIVE, f"receive {label[2]}"):
                payload, arrived = wait_for_payload()
            self._inbox.put((label, payload, arrived))
