import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from rich.console import Console

from pipeflow.rundir.records import Epoch, EpochBytes
from pipeflow.training import progress
from pipeflow.training.progress import Progress
from pipeflow.training.schedule import Phase


def record(number: int = 3, mode: str = "alternate", trained: tuple[int, ...] = (1,), **changes) -> Epoch:
    fields = {
        "epoch": number, "phase": mode, "trained": trained, "steps": 78,
        "train_loss": {str(part): 5.1 for part in trained}, "test_bpd": 4.52, "exit_bpd": (5.13, 4.62, 4.52),
        "seconds": 11.6, "images": 4988, "macs": 10**12,
        "bytes": EpochBytes(latents=((0, 1, 20_000_000), (1, 2, 4_600_000)), eval=9, gradients=0, control=120),
    }  # fmt: skip
    return Epoch(**{**fields, **changes})


def begin(number: int = 3, mode: str = "alternate", trained: tuple[int, ...] = (1,)) -> Phase:
    return Phase(epoch=number, mode=mode, steps=78, turns=(trained,), turn_steps=78)


def status(step: int, losses: dict, epoch: int = 3) -> dict:
    return {"epoch": epoch, "step": step, "losses": losses}


@pytest.fixture
def now(monkeypatch):
    """The clock, in a list of one."""
    time = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def plain() -> Console:
    return Console(file=io.StringIO(), width=40)  # narrow: a line must not be broken all the same


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})


def test_plain_lines_are_a_start_an_epoch_and_what_is_said(now):
    console = plain()
    with closing(Progress(18, 3, console=console)) as display:
        display.phase(begin())
        display.update(status(40, {1: 5.2}), [], 430.0, 12_000_000)
        now[0] += 14.3
        display.epoch(record())
        display.say("checkpoint [epoch 4] taken")
    assert console.file.getvalue().splitlines() == [
        "18 epochs, 3 parts",
        "epoch 4/18 alternate part 1 | loss 1: 5.10 | test 4.52 bits/dim (exits 5.13 4.62 4.52) | 11.6 s, 430 images/s"
        " | 24.6 MB sent | 3 min 20 s left",
        "checkpoint [epoch 4] taken",
    ]


@pytest.mark.parametrize(
    "epoch, line",
    [
        (
            record(0, "concurrent", (0, 1), test_bpd=None, exit_bpd=None),
            "epoch 1/4 concurrent parts 0 1 | loss 0: 5.10 1: 5.10 | 11.6 s",
        ),
        (
            record(3, "finetune", (0, 1), train_loss={"0": math.nan}, exit_bpd=None),
            "epoch 4/4 finetune | loss nan | test 4.52 bits/dim | ",
        ),
    ],
)
def test_the_line_of_an_epoch_has_what_there_is(now, epoch, line):
    console = plain()
    with closing(Progress(4, 2, console=console)) as display:
        display.epoch(epoch)
    assert console.file.getvalue().splitlines()[1].startswith(line)


def test_time_left_goes_by_the_epochs_of_this_process(now):
    console = plain()
    with closing(Progress(10, 3, console=console)) as display:  # resumed: 6 epochs were done before
        display.phase(begin(6))
        now[0] += 100
        display.phase(begin(7))  # the first part runs ahead of the last one's record
        display.epoch(record(6))
        now[0] += 20
        display.epoch(record(7))
    lines = console.file.getvalue().splitlines()[1:]
    assert [line.split(" | ")[-1] for line in lines] == ["5 min 00 s left", "2 min 00 s left"]


def test_a_terminal_shows_the_phase_live_until_the_run_ends_or_fails(now):
    console = terminal()
    with pytest.raises(KeyError), closing(Progress(18, 3, console=console)) as display:
        display.phase(begin())
        now[0] += 10
        display.update(status(39, {1: 5.25}), [], 430.0, 24_600_000)
        shown = console.file.getvalue()
        for text in (
            "18 epochs, 3 parts", "epoch 4 of 18", "alternate part 1", "step 39 of 78", "part 0", "part 2",
            "loss 5.250", "loss -", "430 images/s", "24.6 MB sent", "4 min 50 s left",
        ):  # fmt: skip
            assert text in shown
        display.phase(begin(12, "finetune", (0, 1, 2)))
        display.update(status(1, {0: 4.4}), [], 200.0, 24_600_000)
        assert "whole flow  loss 4.400" in console.file.getvalue()
        raise KeyError
    assert console.file.getvalue().count("\x1b[?25h") == 1, "the cursor is back"
    display.close()  # twice does no harm


@pytest.mark.parametrize("make_console", [plain, terminal])
def test_calls_from_several_threads_neither_fail_nor_wait_for_each_other(make_console):
    console = make_console()

    def repeat(call: Callable[[int], None]) -> None:
        for step in range(1, 40):
            call(step)

    with closing(Progress(10_000, 3, console=console)) as display, ThreadPoolExecutor() as threads:
        display.phase(begin(0))
        calls = [
            lambda step: display.update(status(step, {0: 1.0, 1: 2.0}), [], 10.0, step),
            lambda step: display.epoch(record(step)),
            lambda step: display.phase(begin(step, *(("finetune", (0, 1)) if step % 2 else ()))),
            lambda step: display.say(f"said {step}"),
        ]
        for ended in [threads.submit(repeat, call) for call in calls]:
            ended.result(timeout=30)
    assert all(f"said {step}" in console.file.getvalue() for step in range(1, 40))
