"""Schedules as tables: which parts train in which epoch or on which batch, without a process group."""

import math

import pytest

from pipeflow.config import Config
from pipeflow.rundir.records import Epoch, EpochBytes
from pipeflow.training.schedule import DIVERGED_BY, Phase, Schedule, Stop


def make(steps: int = 10, parts: int = 3, **schedule) -> Schedule:
    config = Config.from_dict({"parts": {"num": parts}, "schedule": {"finetune_epochs": 2, **schedule}})
    return Schedule(config, parts, steps)


def table(schedule: Schedule) -> list[tuple[str, list[int]]]:
    return [(phase.mode, phase.trained) for phase in schedule.phases()]


FINETUNE = [("finetune", [0, 1, 2])] * 2


@pytest.mark.parametrize(
    "mode, every, trained",
    [
        ("sequential", "1 epoch", [[0], [0], [0], [0], [1], [1], [2], [2]]),
        ("sequential", "1 epoch", [[0], [0]]),
        ("alternate", "1 epoch", [[2], [0], [1], [2], [0], [1], [2]]),
        ("alternate", "2 epochs", [[0], [0], [1], [1], [2], [2]]),
        ("concurrent", "1 epoch", [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_parts_of_each_epoch(mode, every, trained):
    """Sequential: equal shares, and the remainder to the first. Alternate: the last turn is the last part's."""
    schedule = make(mode=mode, local_epochs=len(trained), alternate_every=every)
    assert table(schedule) == [(mode, parts) for parts in trained] + FINETUNE
    assert [schedule.num_updates(part) for part in range(3)] == [
        10 * sum(part in each for each in trained) for part in range(3)
    ]


def test_alternate_by_steps_runs_on_over_the_end_of_an_epoch():
    schedule = make(mode="alternate", local_epochs=2, alternate_every="3 steps")
    turns = [[phase.training(step)[0] for step in range(10)] for phase in schedule.phases()[:2]]
    assert turns == [[2, 2, 2, 0, 0, 0, 1, 1, 1, 2], [2, 2, 0, 0, 0, 1, 1, 1, 2, 2]]
    assert [schedule.num_updates(part) for part in range(3)] == [6, 6, 8]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ({"mode": "sequential", "local_epochs": 8}, [(), (), (), (), (1,), (), (2,), ()]),
        ({"mode": "alternate", "local_epochs": 6}, [(), (1,), (2,), (), (), ()]),
        (
            {"mode": "alternate", "local_epochs": 4},
            [(), (), (1,), ()],
        ),  # parts 2, 0, 1, 2: nothing trained before 2 and 0
        ({"mode": "alternate", "local_epochs": 3, "alternate_every": "3 steps"}, [(), (), ()]),
        ({"mode": "concurrent", "local_epochs": 3}, [(), (), ()]),
        ({"mode": "end_to_end", "local_epochs": 3}, [(), (), ()]),
    ],
)
def test_parts_behind_those_that_have_trained_take_initial_values_anew(schedule, expected):
    phases = make(**schedule).phases()
    assert [phase.initialize for phase in phases] == expected + [()] * 2
    assert [Phase.from_json(phase.to_json()).initialize for phase in phases] == expected + [()] * 2


def test_a_turn_of_one_batch_is_as_small_a_message_as_any():
    phase = make(steps=781, mode="alternate", local_epochs=2, alternate_every="1 step").phases()[0]
    assert len(str(phase.to_json())) < 300
    assert phase.trained == [0, 1, 2]
    assert Phase.from_json(phase.to_json()) == phase


def test_end_to_end_trains_the_whole_flow_in_all_epochs():
    schedule = make(mode="end_to_end", local_epochs=3)
    assert table(schedule) == [("end_to_end", [0, 1, 2])] * 5
    assert schedule.num_finetune_updates() == 50
    assert not any(phase.is_local for phase in schedule.phases())


@pytest.mark.parametrize(
    "mode, every",
    [("alternate", every) for every in ("1 epoch", "1 step", "3 steps", "7 steps", "25 steps")]
    + [("sequential", "1 epoch"), ("concurrent", "1 epoch")],
)
def test_counts_agree_with_counting_batch_by_batch(mode, every):
    """Parts after the last one that trains do not run."""
    for phase in make(mode=mode, local_epochs=4, alternate_every=every).phases():
        turns = [phase.training(step) for step in range(phase.steps)]
        for part in range(3):
            assert phase.count_training(part) == sum(part in turn for turn in turns)
            assert phase.count_running(part) == sum(part <= max(turn) for turn in turns)


def test_evaluations_and_checkpoints_come_as_often_as_asked_and_at_the_end_of_each_stage():
    epochs = {"local_epochs": 5, "finetune_epochs": 3}
    often = {"eval": {"every_epochs": 3}, "checkpoint": {"every_epochs": 4}}
    phases = Schedule(Config.from_dict({"schedule": epochs, **often}), 3, 10).phases()
    assert [phase.epoch for phase in phases if phase.evaluate] == [2, 4, 5, 7]
    assert [phase.epoch for phase in phases if phase.checkpoint] == [3, 4, 7]


def record(loss: float, part: str = "0", phase: str = "concurrent", test_bpd: float | None = None) -> Epoch:
    nothing = EpochBytes(latents=(), eval=0, gradients=0, control=0)
    return Epoch(
        epoch=0, phase=phase, trained=(0,), steps=1, train_loss={part: loss}, test_bpd=test_bpd, exit_bpd=None, seconds=1.0,
        images=1, macs=1, bytes=nothing,
    )  # fmt: skip


def test_the_coordinator_goes_through_the_phases_and_ends():
    schedule = make(mode="concurrent", local_epochs=2)
    history: list[Epoch] = []
    while (phase := schedule.next_phase(history)) is not None:
        assert phase == schedule.phases()[len(history)]
        history.append(record(5.0, phase=phase.mode))
    assert len(history) == 4


SEEN = record(-9.0, test_bpd=4.49)
"""Seen on CIFAR-10: 4.49 bits/dim before the gather, a mean loss of 140 in the first epoch after it."""


@pytest.mark.parametrize(
    "history, reasons",
    [
        ([record(5.0), record(5.1 + DIVERGED_BY)], ["part 0", "10.10"]),
        ([record(5.0), record(math.nan)], ["part 0"]),
        ([SEEN, record(140.0, "flow", "finetune", test_bpd=44.0)], ["part flow", "from 4.49 before"]),
        ([SEEN, record(4.6, "flow", "finetune", test_bpd=4.4)], None),
        ([record(5.0), record(4.0)], None),
        ([record(-9.0, "flow"), record(4.0, "flow", "finetune")], None),
    ],
)
def test_the_coordinator_stops_what_diverges_within_a_phase_and_says_which_part(history, reasons):
    """Local losses are not compared with those of the gathered flow."""
    after = make(mode="concurrent", local_epochs=2 if history[1].phase == "concurrent" else 1).next_phase(history)
    assert isinstance(after, Phase if reasons is None else Stop)
    assert all(reason in after.reason for reason in reasons or [])
