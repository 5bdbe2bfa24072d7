"""How a worker learns that another one is gone or has failed: an alarm that every wait listens to, and heartbeats.

Each worker writes a beat into the launcher's store once a second. Rank 0 watches everybody's, everybody watches rank 0's,
those at the other ends of its links, and the processes on its own machine: a worker that waits for hours, while rank 0
fine-tunes, waits without a time-out and still hears of its end. The first failure is written into the store too, so that
all stop for one reason and one of them says it.

What waits inside torch (an all-reduce with a worker that stands still, the making of a group) cannot hear the alarm: where
nobody has heard it for a while, a guard says what it was and ends the process.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable

import torch.distributed as dist

from pipeflow.errors import WorkerError
from pipeflow.workers import parent
from pipeflow.workers.alarm import _POLL_SECONDS, BEAT_SECONDS, QUIET_SECONDS, Alarm, first_line
from pipeflow.workers.preemption import Notice
from pipeflow.workers.processes import Siblings
from pipeflow.workers.traffic import Traffic

CAUSE_SECONDS = 3.0
"""In which the monitor hears what is behind a connection that broke inside torch."""
_LAUNCHER_SECONDS = 1.0
"""A launcher that was killed closes the store in its memory before it is seen to be gone."""
_ENDED = "ended"


class Monitor:
    """This worker's heartbeat and its watch over others', in a thread with a store connection of its own."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        timeout: float,
        alarm: Alarm,
        notice: Notice,
        traffic: Traffic,
    ):
        """timeout: seconds without a heartbeat after which a worker counts as lost, `run.heartbeat_timeout_s`."""
        self.status: Callable[[], dict] = dict
        """Gives what the beat carries: rank 0 shows it as the progress of the others."""
        self.statuses: dict[int, dict] = {}
        self.parts: dict[int, list[int]] = {}
        """The parts that each worker is to hold, known before its first beat that says so."""
        self._traffic = traffic
        self._store = store
        self._rank = rank
        self._timeout = timeout
        self._pause = min(BEAT_SECONDS, timeout / 5)
        self._alarm = alarm
        self._notice = notice
        alarm.doing_of = self._doing_of
        self._siblings = Siblings(store, rank, world_size)
        notice.is_of_a_loss = lambda: bool(self._siblings.gone())
        self._watched = [other for other in (range(world_size) if rank == 0 else [0]) if other != rank]
        self._last: dict[int, tuple[str, float]] = {}
        self._count = 0
        self.store_lost = False
        self._answered = time.monotonic()
        self._stopped = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pipeflow-monitor", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="pipeflow-silence", daemon=True).start()

    def watch(self, others: Iterable[int]) -> None:
        """Watches these workers too: those at the other ends of this one's links."""
        self._watched = sorted({*self._watched, *others})

    def close(self) -> None:
        """Ends the watch; says to the others that this worker ended as it should."""
        self._stopped.set()
        self._thread.join()
        self._store.set(self._beat_key(self._rank), _ENDED)
        self._closed.set()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._beat()
                self._look_for_failure()
                self._share_notice()
                self._look_for_siblings()
                for other in self._watched:
                    self._watch(other)
                self._answered = time.monotonic()
                self._stopped.wait(self._pause)
        except Exception as error:  # any: a worker must not go on unwatched
            self._lose_store(first_line(error))

    def _guard(self) -> None:
        """Watches the watch, for a store on a machine that is gone does not fail, it never answers."""
        while not self._closed.wait(self._pause):
            silent = time.monotonic() - self._answered
            if silent > self._timeout and not self.store_lost:
                self._lose_store(f"silent for {silent:.0f} s")

    def quiet(self) -> str:
        """Who of those that this worker watches has missed several beats, in words behind a sentence."""
        now = time.monotonic()
        ages = {other: now - since for other, (value, since) in [*self._last.items()] if value != _ENDED}
        told = [
            f"worker {other}{self.about(other)} for {age:.0f} s" for other, age in ages.items() if age > QUIET_SECONDS
        ]
        return f"; no heartbeat of {', '.join(told)}" if told else ""

    def _lose_store(self, why: str) -> None:
        self.store_lost = True
        end = time.monotonic() + _LAUNCHER_SECONDS
        while time.monotonic() < end:
            if parent.is_gone():  # which had the store; the guard says it
                return
            time.sleep(_POLL_SECONDS)
        self._alarm.trip(
            WorkerError(
                f"worker {self._rank}: the launcher's store does not answer any more ({why}): worker 0{self.about(0)} or "
                f"the launcher is gone, while worker {self._rank} {self._alarm.doing}. Start the same command again to "
                f"resume."
            )
        )

    def _beat_key(self, rank: int) -> str:
        return f"beat/{rank}"

    def _beat(self) -> None:
        self._count += 1
        key, value = (
            self._beat_key(self._rank),
            json.dumps({"count": self._count, "doing": self._alarm.doing, **self.status()}),
        )
        self._store.set(key, value)
        self._traffic.add("control", self._rank, 0, len(key) + len(value))

    def _look_for_failure(self) -> None:
        if self._store.check(["failure"]):
            failure = json.loads(self._store.get("failure"))
            if failure["rank"] != self._rank:
                error = WorkerError(failure["message"])
                error.reported = True
                self._alarm.trip(error)

    def _share_notice(self) -> None:
        """Of a machine's workers all get the signal, of several machines' maybe one."""
        if self._notice:
            self._store.set("preempted", str(self._notice.from_rank))
        elif self._store.check(["preempted"]):
            self._notice.give(int(self._store.get("preempted")))

    def _look_for_siblings(self) -> None:
        self._siblings.meet()
        for other, pid in self._siblings.gone().items():
            # Whoever failed by itself has said so before its end, and whoever came to the end of the run has left a word.
            self._look_for_failure()
            key = self._beat_key(other)
            said = self._store.get(key).decode() if self._store.check([key]) else "{}"
            if said == _ENDED:
                continue
            self.statuses[other] = json.loads(said)
            self._alarm.trip(
                WorkerError(
                    f"worker {other} was lost{self.about(other)}: its process {pid} has ended, while worker {self._rank} "
                    f"{self._alarm.doing}. Start the same command again to resume."
                )
            )

    def _doing_of(self, other: int) -> str:
        _, since = self._last.get(other, ("", 0.0))
        return self.statuses.get(other, {}).get("doing", "") if time.monotonic() - since < QUIET_SECONDS else ""

    def about(self, other: int) -> str:
        """What a worker that this one watches last said of itself, in words behind its number."""
        placed = {"parts": self.parts[other]} if other in self.parts else {}
        return _described({**placed, **self.statuses.get(other, {})})

    def _watch(self, other: int) -> None:
        key = self._beat_key(other)
        if not self._store.check([key]):
            return
        value = self._store.get(key).decode()
        previous, since = self._last.get(other, ("", 0.0))
        now = time.monotonic()
        if value != previous:
            self._last[other] = (value, now)
            if value != _ENDED:
                self.statuses[other] = json.loads(value)
        elif value != _ENDED and now - since > self._timeout:
            self._alarm.trip(
                WorkerError(
                    f"worker {other} was lost{self.about(other)}: worker {self._rank} has not heard its heartbeat for "
                    f"{now - since:.0f} s (killed, stopped, or its machine or link is gone), while worker {self._rank} "
                    f"{self._alarm.doing}. Start the same command again to resume."
                )
            )


def _described(status: dict) -> str:
    """What a worker last said of itself."""
    parts = status.get("parts", [])
    told = []
    if "parts" in status:  # not before it has been told its own
        told.append(f"part{'s' * (len(parts) > 1)} {', '.join(map(str, parts))}" if parts else "no part")
    if "step" in status:
        told.append(f"then in epoch {status['epoch']}, step {status['step']}")
    return f" ({'; '.join(told)})" if told else ""


def claim_failure(store: dist.Store, rank: int, message: str) -> bool:
    """Writes the run's failure into the store; False where another worker's failure stands there already."""
    mine = json.dumps({"rank": rank, "message": message})
    return store.compare_set("failure", "", mine).decode() == mine
