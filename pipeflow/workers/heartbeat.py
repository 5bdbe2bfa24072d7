"""Heartbeats in the launcher's store, by which a worker learns that another one is gone or has failed.

Each worker writes a beat into the store once a second. Rank 0 watches everybody's; everybody watches rank 0's, those of the
workers at the other ends of its links, and the processes on its own machine. So a worker that waits for hours, while rank 0
fine-tunes, needs no time-out and still hears of rank 0's end. The first failure stands in the store too: all workers stop
for one reason, and one of them reports it.
"""

import itertools
import json
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeflow.errors import PipeflowError, WorkerError, first_line
from pipeflow.workers import parent
from pipeflow.workers.alarm import POLL_SECONDS, Alarm
from pipeflow.workers.environment import Place
from pipeflow.workers.preemption import Notice
from pipeflow.workers.processes import LocalProcesses
from pipeflow.workers.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._C._distributed_c10d import Store

_BEAT_SECONDS = 1.0
_QUIET_SECONDS = 3.0
"""A worker without a beat for so long may no longer do what it said last."""
_LAUNCHER_SECONDS = 1.0
"""A launcher that is killed closes its store so long before its process is seen to be gone."""
_CLAIM_SECONDS = 5.0
"""A store that is out of reach gets so long to take a worker's error."""
_ENDED = "ended"


class Monitor:
    """This worker's heartbeat and its watch over the others', in a thread with a store connection of its own."""

    def __init__(self, store: "Store", launched: Place, timeout: float, alarm: Alarm, notice: Notice, traffic: Traffic):
        """timeout: seconds without a heartbeat after which a worker counts as lost, `run.heartbeat_timeout_s`."""
        self.status: Callable[[], dict[str, Any]] = dict
        """Gives what each beat carries beside the worker's activity."""
        self.begun: Callable[[], dict[int, int]] = dict
        """Gives the number of messages on the control group that were begun with each worker, for the beat."""
        self.statuses: dict[int, dict[str, Any]] = {}
        """The last beats of the watched workers; rank 0 shows them as progress."""
        self.parts: dict[int, list[int]] = {}
        """The parts that each worker will hold, for messages before its first beat that names them."""
        self.store_lost = False
        self._store = store
        self._store_is_worker_0s = launched.store_is_worker_0s
        self._rank = rank = alarm.rank
        self._timeout = timeout
        self._alarm = alarm
        self._notice = notice
        self._traffic = traffic
        self._local = LocalProcesses(store, rank, launched.size)
        self._watched = {other for other in (range(launched.size) if rank == 0 else [0]) if other != rank}
        self._last: dict[int, tuple[str, float]] = {}
        self._counter = itertools.count()
        self._answered = time.monotonic()
        self._is_stopped = False
        self._woken = threading.Event()
        self._gone: int | None = None
        alarm.doing_of, alarm.about = self._doing_of, self._about
        notice.is_of_a_loss = lambda: self._gone is not None or alarm.error is not None or bool(self._local.ended())
        notice.hears_late = launched.num_machines > 1
        self._thread = threading.Thread(target=self._run, name="pipeflow-monitor", daemon=True)
        self._thread.start()
        alarm.watches.append(self._watch_store)

    def watch(self, other: int) -> None:
        """Watches this worker too."""
        self._watched = {*self._watched, other}

    def stop(self) -> None:
        """Ends the watch, and lets the others know that this worker ended as it should."""
        self.abandon()
        self._thread.join()
        self._store.set(_beat_key(self._rank), _ENDED)

    def abandon(self) -> None:
        """Ends the watch without waiting for the store, which may not answer any more."""
        self._is_stopped = True
        self._woken.set()

    def lose(self, other: int) -> None:
        """Is told of a worker whose process has ended on another machine."""
        self._gone = other
        self._woken.set()

    def begun_by(self, other: int) -> int:
        """Messages on the control group between another worker and this one that the other has begun, as its beat says."""
        begun: dict[str, int] = self.statuses.get(other, {}).get("begun", {})
        return begun.get(str(self._rank), 0)

    def _about(self, other: int) -> str:
        """Another worker's parts and position, as far as they are known, in brackets behind its number."""
        status = self.statuses.get(other, {})
        parts = status.get("parts", self.parts.get(other))
        told = []
        if parts is not None:
            told.append(f"part{'s' * (len(parts) > 1)} {', '.join(map(str, parts))}" if parts else "no part")
        if "step" in status:
            told.append(f"then in epoch {status['epoch']}, step {status['step']}")
        return f" ({'; '.join(told)})" if told else ""

    def missed(self) -> str:
        """The watched workers that have missed several beats, as a clause behind a sentence."""
        now = time.monotonic()
        ages = {other: now - since for other, (value, since) in [*self._last.items()] if value != _ENDED}
        late = [
            f"worker {other}{self._about(other)} for {age:.0f} s" for other, age in ages.items() if age > _QUIET_SECONDS
        ]
        return f"; no heartbeat of {', '.join(late)}" if late else ""

    def _doing_of(self, other: int) -> str:
        _, since = self._last.get(other, ("", 0.0))
        return self.statuses.get(other, {}).get("doing", "") if time.monotonic() - since < _QUIET_SECONDS else ""

    def _run(self) -> None:
        try:
            while not self._is_stopped:
                self._beat()
                self._look_for_failure()
                self._share_notice()
                self._look_for_ended_processes()
                self._look_for_neighbour()
                for other in self._watched:
                    self._look_for_beat(other)
                self._pause(min(_BEAT_SECONDS, self._timeout / 5))
        except Exception as error:  # any: a worker must not go on unwatched
            self._lose_store(first_line(error))

    def _pause(self, seconds: float) -> None:
        self._answered = start = time.monotonic()
        self._woken.wait(seconds)
        if not self._is_stopped:
            self._woken.clear()
        # A process that was stopped (SIGSTOP, Ctrl-Z) and continued has not listened meanwhile: nobody was silent.
        missed = max(0.0, time.monotonic() - start - seconds)
        self._last = {other: (value, since + missed) for other, (value, since) in self._last.items()}
        self._answered += missed

    def _beat(self) -> None:
        about = {"count": next(self._counter), "doing": self._alarm.doing, "begun": self.begun()}
        value = json.dumps({**about, **self.status()})
        key = _beat_key(self._rank)
        self._store.set(key, value)
        self._traffic.add("control", self._rank, 0, len(key) + len(value))

    def _look_for_failure(self) -> None:
        if self._store.check(["failure"]):
            failure = json.loads(self._store.get("failure"))
            if failure["rank"] != self._rank:
                error = WorkerError(failure["message"])
                error.reported, error.follows_mistake = True, failure["is_mistake"]
                self._alarm.trip(error)

    def _share_notice(self) -> None:
        """Passes a preemption on: all workers of a machine get the signal, but maybe those of one machine only."""
        self._notice.settle()
        if self._notice:
            self._store.set("preempted", json.dumps([self._notice.from_rank, self._notice.signal]))
        elif self._store.check(["preempted"]):
            self._notice.give(*json.loads(self._store.get("preempted")))

    def _look_for_ended_processes(self) -> None:
        self._local.meet()
        for other, pid in self._local.ended().items():
            self._look_for_end(other, f"its process {pid} has ended")

    def _look_for_neighbour(self) -> None:
        if self._gone is not None:
            self._look_for_end(self._gone, f"its connection to worker {self._rank} was closed, its process has ended")
            error = self._alarm.error
            if error is not None and not error.reported and not parent.trouble():
                claim_failure(self._store, self._rank, error)  # at once: other launchers may soon send a SIGTERM

    def _look_for_end(self, other: int, how: str) -> None:
        """A worker that failed by itself has written so before its end; one that finished has left its last beat."""
        self._look_for_failure()
        last = self._store.get(_beat_key(other)).decode() if self._store.check([_beat_key(other)]) else "{}"
        if last != _ENDED:
            self.statuses[other] = json.loads(last)
            self._alarm.trip_loss(f"worker {other} was lost{self._about(other)}: {how}")

    def _look_for_beat(self, other: int) -> None:
        if not self._store.check([_beat_key(other)]):
            return
        value = self._store.get(_beat_key(other)).decode()
        previous, since = self._last.get(other, ("", 0.0))
        silent = time.monotonic() - since
        if value != previous:
            self._last[other] = (value, time.monotonic())
            if value != _ENDED:
                self.statuses[other] = json.loads(value)
        elif value != _ENDED and silent > self._timeout:
            self._alarm.trip_loss(
                f"worker {other} was lost{self._about(other)}: worker {self._rank} has not heard its heartbeat for "
                f"{silent:.0f} s (run.heartbeat_timeout_s; killed, stopped, or its machine or link is gone)"
            )

    def _watch_store(self) -> None:
        """Watches the watch, from the guard's thread: a store on a machine that is gone does not fail, it never answers."""
        silent = time.monotonic() - self._answered
        if silent > self._timeout and not self.store_lost:
            self._lose_store(f"silent for {silent:.0f} s")

    def _lose_store(self, why: str) -> None:
        self.store_lost = True
        if self._store_is_worker_0s:
            self._alarm.trip(self.loss_of_store(why))
            return
        end = time.monotonic() + _LAUNCHER_SECONDS
        while time.monotonic() < end:
            if parent.is_gone():  # the store went with it, and the alarm's guard reports that
                return
            time.sleep(POLL_SECONDS)
        self._alarm.trip(self.loss_of_store(why))

    def loss_of_store(self, why: str) -> WorkerError:
        """The error of a store that does not answer, with the store's own in brackets."""
        if self._store_is_worker_0s:
            return self._alarm.loss(f"worker 0 was lost{self._about(0)}: its store does not answer any more ({why})")
        return self._alarm.loss(
            f"worker {self._rank}: the launcher's store does not answer any more ({why}): worker 0{self._about(0)} or "
            f"the launcher is gone"
        )


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"


def claim_in_time(store: "Store", rank: int, error: PipeflowError) -> tuple[int, str, bool] | None:
    """As `claim_failure`; None where the store is gone, or behind a link that is cut, which never answers."""
    claims: list[tuple[int, str, bool]] = []

    def claim() -> None:
        with suppress(RuntimeError):
            claims.append(claim_failure(store, rank, error))

    claiming = threading.Thread(target=claim, name="pipeflow-failure", daemon=True)
    claiming.start()
    claiming.join(_CLAIM_SECONDS)
    return claims[0] if claims else None


def claim_failure(store: "Store", rank: int, error: PipeflowError) -> tuple[int, str, bool]:
    """Writes the failure into the store; the first stays: whose it is, its message, and whether it is a mistake."""
    is_mistake = not isinstance(error, WorkerError)
    mine = json.dumps({"rank": rank, "message": str(error), "is_mistake": is_mistake})
    first = json.loads(store.compare_set("failure", "", mine))
    return first["rank"], first["message"], first["is_mistake"]
