import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from rich.console import Console

from pipeflow.config import Config
from pipeflow.plan import make_plan
from pipeflow.rundir.records import Carried, Epoch, EpochBytes
from pipeflow.training import progress, totals
from pipeflow.training.progress import Progress
from pipeflow.training.schedule import Phase, epoch_cost
from pipeflow.training.totals import EpochDraft

NO_BYTES = EpochBytes(latents=(), eval=9, gradients=0, control=120)


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
    with closing(Progress([1.0] * 18, 3, travels=True, console=console)) as display:
        display.phase(begin())
        display.update(status(40, {1: 5.2}), [], 430.0, 12_000_000)
        now[0] += 14.3
        display.epoch(record())
        display.say("checkpoint [epoch 3] taken")
    assert console.file.getvalue().splitlines() == [
        "18 epochs, 3 parts",
        "epoch 3 (4 of 18) alternate part 1 | loss 1: 5.10 | test 4.52 bits/dim (exits 5.13 4.62 4.52) | 11.6 s, "
        "430 images/s | 24.6 MB sent | 3 min 20 s left",
        "checkpoint [epoch 3] taken",
    ]


@pytest.mark.parametrize(
    "epoch, line",
    [
        (
            record(0, "concurrent", (0, 1), test_bpd=None, exit_bpd=None),
            "epoch 0 (1 of 4) concurrent parts 0 1 | loss 0: 5.10 1: 5.10 | 11.6 s",
        ),
        (
            record(3, "finetune", (0, 1), train_loss={"0": math.nan}, exit_bpd=None, bytes=NO_BYTES),
            "epoch 3 (4 of 4) finetune | loss nan | test 4.52 bits/dim | ",
        ),
    ],
)
def test_the_line_of_an_epoch_has_what_there_is(now, epoch, line):
    console = plain()
    with closing(Progress([1.0] * 4, 2, travels=False, console=console)) as display:
        display.epoch(epoch)
    printed = console.file.getvalue().splitlines()[1]
    assert printed.startswith(line) and printed.endswith("430 images/s" + " | 24.6 MB would travel" * epoch.is_local)


def test_time_left_goes_by_the_pace_of_the_stage_and_by_what_the_epochs_to_come_cost(now):
    console = plain()
    costs = [1.0] * 8 + [3.0] * 2
    with closing(Progress(costs, 3, travels=True, console=console)) as display:  # resumed inside epoch 6
        for number, mode, first_step, seconds in [
            (6, "alternate", 39, 5),  # half an epoch: ten seconds for a cost of 1, of which 7 are left
            (7, "alternate", 0, 10),
            (8, "finetune", 0, 60),  # a pace of its own: 20 s for a cost of 1
            (9, "finetune", 0, 60),
        ]:
            display.phase(begin(number, mode), first_step)
            now[0] += seconds
            display.epoch(record(number, mode))
    lines = console.file.getvalue().splitlines()[1:]
    left = ["1 min 10 s left", "1 min 00 s left", "1 min 00 s left", "0.0 s left"]
    assert [line.split(" | ")[-1] for line in lines] == left


def test_the_speed_of_an_epoch_that_goes_on_is_that_of_this_process(monkeypatch):
    clock = iter([1000.0, 1010.0])
    monkeypatch.setattr(totals.time, "perf_counter", lambda: next(clock))
    assert EpochDraft(begin(), 2, first_step=40).batches_per_second(60) == 2.0
    monkeypatch.undo()
    before = Carried(seconds=5.0, bytes=NO_BYTES)
    batches = [EpochDraft(begin(), 0, 40, carried).num_batches for carried in (None, before)]
    assert batches == [38, 78], "the record's images are those of its seconds"


def test_an_epoch_takes_as_long_as_its_busiest_worker():
    config = Config.from_dict({"model": {"num_steps": 4, "width": 8}, "data": {"num_train": 640}})
    plan = make_plan(config)
    macs = [3 * part.multiply_adds() for part in plan.parts]
    for num_workers, local in [(1, sum(macs)), (2, min(max(macs[0], sum(macs[1:])), max(sum(macs[:2]), macs[2])))]:
        costs = [epoch_cost(config, phase, plan.parts, num_workers) for phase in plan.phases]
        assert costs == [10 * local] * 8 + [10 * sum(macs)] * 2
    assert epoch_cost(config, plan.phases[0], plan.parts, 3) == 10 * max(macs)


def test_a_terminal_shows_the_phase_live_until_the_run_ends_or_fails(now):
    console = terminal()
    with pytest.raises(KeyError), closing(Progress([1.0] * 18, 3, True, console=console)) as display:
        display.phase(begin())
        now[0] += 10
        display.update(status(39, {1: 5.25}), [], 430.0, 24_600_000)
        shown = console.file.getvalue()
        for text in (
            "18 epochs, 3 parts", "epoch 3 (4 of 18)", "alternate part 1", "step 39 of 78", "part 0", "part 2",
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

    with closing(Progress([1.0] * 10_000, 3, True, console=console)) as display, ThreadPoolExecutor() as threads:
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
