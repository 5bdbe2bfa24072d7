"""The display of a run on rank 0: live on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeflow.config import FINETUNE
from pipeflow.rundir.records import Epoch
from pipeflow.training.schedule import Phase
from pipeflow.units import count_text, duration_text, traffic_text


def phase_name(mode: str, trained: Sequence[int]) -> str:
    """A phase and the parts that train in it: `alternate part 1`, `concurrent parts 0 1 2`, `finetune`."""
    if mode in FINETUNE:
        return mode
    return f"{mode} part{'s' if len(trained) > 1 else ''} {' '.join(map(str, trained))}"


def epoch_text(epoch: int, num_epochs: int) -> str:
    """An epoch, counted from 0 as in options, metrics and timelines, and the how-manieth of the run it is."""
    return f"epoch {epoch} ({epoch + 1} of {num_epochs})"


def epoch_line(record: Epoch, num_epochs: int, travels: bool, seconds_left: float | None, given: str = "") -> str:
    """A finished epoch in one line, with the bytes of its training and, where it is known, the time left of the run."""
    losses = " ".join(f"{f'{part}: ' * record.is_local}{loss:.2f}" for part, loss in record.train_loss.items())
    fields = [f"{epoch_text(record.epoch, num_epochs)} {phase_name(record.phase, record.trained)}", f"loss {losses}"]
    if record.test_bpd is not None:
        exits = f" (exits {' '.join(f'{bpd:.2f}' for bpd in record.exit_bpd)})" if record.exit_bpd else ""
        fields.append(f"test {record.test_bpd:.2f} bits/dim{given}{exits}")
    fields.append(f"{duration_text(record.seconds)}, {record.images / record.seconds:.0f} images/s")
    if travels or record.training_bytes:
        fields.append(traffic_text(record.training_bytes, travels))
    if seconds_left is not None:
        fields.append(f"{duration_text(seconds_left)} left")
    return " | ".join(fields)


class Progress:
    """Shows a run on rank 0. Any method may be called from any thread.

    On a terminal the last lines are a live display: the epoch, the phase and which parts train, a bar for the phase's
    steps, the losses, speed, bytes and the time left; messages and finished epochs scroll by above it. Where there is
    no terminal only those messages and epochs are printed, a line each.

    Args:
        costs: for each epoch of the whole run, those before a resume included, a number that its seconds grow with.
        num_parts: parts of the flow.
        travels: whether the bytes go from one worker to another.
        given: words behind the bits/dim of the whole flow: " given the label", or none.
        console: where to show it; standard output when not given.
    """

    def __init__(
        self,
        costs: Sequence[float],
        num_parts: int,
        travels: bool,
        given: str = "",
        console: Console | None = None,
    ):
        self._console = console or Console()
        self._num_epochs = len(costs)
        self._cost_until = list(accumulate(costs, initial=0.0))
        self._travels = travels
        self._given = given
        self._lock = threading.Lock()
        self._pace_since: tuple[float, float] | None = None
        """When this process began the stage (local or end to end), and the costs of all that was done before."""
        self._phase: Phase | None = None
        self._step = 0
        self._losses: dict[int, float | None] = dict.fromkeys(range(num_parts))
        self._images_per_second: float | None = None
        self._bytes_sent = 0
        self._live: Live | None = None
        self._print(f"{count_text(self._num_epochs, 'epoch')}, {count_text(num_parts, 'part')}")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # No refresh thread: what is shown changes only when the trainer says so.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def say(self, text: str) -> None:
        """Prints a message, above the display if there is one."""
        with self._lock:
            self._print(text)

    def phase(self, phase: Phase, first_step: int = 0) -> None:
        """Shows that a phase begins, or goes on from batch `first_step`."""
        with self._lock:
            if self._phase is None or self._phase.is_local != phase.is_local:
                # The stages differ in what their workers wait for: each has a pace of its own.
                self._pace_since = time.monotonic(), self._cost(phase.epoch, first_step / phase.steps)
                if not phase.is_local:
                    self._losses = {}
            self._phase = phase
            self._step = first_step
            self._show()

    def update(
        self, mine: Mapping[str, Any], others: Sequence[Mapping[str, Any]], images_per_second: float, bytes_sent: int
    ) -> None:
        """Shows how far the phase is.

        Args:
            mine, others: `epoch`, `step` and `losses` of this worker and of others, as far as they are known. The display
                follows the slowest worker; parts that are not named keep the loss they had.
            images_per_second: of this phase.
            bytes_sent: latents and gradients, since the start of the run.
        """
        everyone = [mine, *others]
        with self._lock:
            self._step = min(each["step"] for each in everyone if each.get("epoch") == mine["epoch"])
            self._losses |= {int(part): loss for each in everyone for part, loss in each.get("losses", {}).items()}
            self._images_per_second = images_per_second
            self._bytes_sent = bytes_sent
            self._show()

    def epoch(self, record: Epoch) -> None:
        """Prints the line of a finished epoch."""
        with self._lock:
            seconds_left = self._seconds_left(self._cost_until[record.epoch + 1])
            self._print(epoch_line(record, self._num_epochs, self._travels, seconds_left, self._given))

    @contextmanager
    def refreshed_by(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Has `refresh` called about twice a second inside the block, by a thread of its own."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(0.5):
                refresh()

        thread = threading.Thread(target=run, name="pipeflow-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        """Takes the live display away; the lines printed above it stay."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _cost(self, epoch: int, share: float) -> float:
        """Costs of the run up to this share of an epoch."""
        before, after = self._cost_until[epoch : epoch + 2]
        return before + share * (after - before)

    def _seconds_left(self, cost: float) -> float | None:
        """Time for the costs to come, at the pace of the stage so far; None before there is one."""
        if self._pace_since is None or cost <= self._pace_since[1]:
            return None
        began, before = self._pace_since
        return (time.monotonic() - began) / (cost - before) * (self._cost_until[-1] - cost)

    def _show(self) -> None:
        if self._live is not None and self._phase is not None:
            self._live.update(self._display(self._phase), refresh=True)

    def _display(self, phase: Phase) -> Group:
        name = phase_name(phase.mode, phase.trained)
        head = Text.assemble((epoch_text(phase.epoch, self._num_epochs), "bold"), f"  {name}")
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=phase.steps, completed=self._step, width=40, complete_style="cyan"),
            f"step {self._step} of {phase.steps}",
        )
        parts = Table.grid(padding=(0, 2))
        for part, loss in self._losses.items():
            trains = not phase.is_local or part in phase.trained
            value = "-" if loss is None else f"{loss:.3f}"
            parts.add_row(
                f"part {part}" if phase.is_local else "whole flow", f"loss {value}", style="" if trains else "dim"
            )
        foot = []
        if self._images_per_second is not None:
            foot = [f"{self._images_per_second:.0f} images/s", traffic_text(self._bytes_sent, self._travels)]
        seconds_left = self._seconds_left(self._cost(phase.epoch, self._step / phase.steps))
        if seconds_left is not None:
            foot.append(f"{duration_text(seconds_left)} left")
        return Group(head, bar, parts, Text("  ".join(foot)))
