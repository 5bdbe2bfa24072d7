"""Signals that ask a run to stop, the second Ctrl-C that ends it at once, and that all of them are given back."""

import signal
import threading
from collections.abc import Iterator

import pytest

from pipeflow.errors import Preempted
from pipeflow.workers import preemption
from pipeflow.workers.preemption import NOTICES, Notice


@pytest.fixture(autouse=True)
def as_before(monkeypatch) -> Iterator[None]:
    """A process that no launcher started, and that a test leaves as it was."""
    for name in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist has one of its own
    before = {number: signal.getsignal(number) for number in NOTICES}
    yield
    assert {number: signal.getsignal(number) for number in NOTICES} == before
    signal.signal(signal.SIGINT, outside)
    assert not [thread for thread in threading.enumerate() if thread.name == "pipeflow-grace" and thread.join(10)]


@pytest.mark.parametrize("number", NOTICES)
def test_each_signal_is_a_notice_inside_the_block(number):
    notice = Notice(2)
    with notice.listening(60, str):
        assert not notice
        signal.raise_signal(number)
        assert (notice.from_rank, notice.signal) == (2, signal.Signals(number).name)


def raised(*signals: int) -> Notice:
    """What comes of these signals, one after the other."""
    notice = Notice(0)
    try:
        with notice.listening(60, str):
            for number in signals:
                signal.raise_signal(number)
    finally:
        notice.close()
    return notice


def assert_interrupted(*signals: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        raised(*signals)


def test_a_second_ctrl_c_is_what_it_was_before():
    assert raised(signal.SIGINT)
    assert_interrupted(signal.SIGINT, signal.SIGINT)


def test_a_scheduler_repeats_itself():
    assert raised(signal.SIGTERM, signal.SIGTERM, signal.SIGHUP).signal == "SIGTERM"
    assert raised(signal.SIGINT, signal.SIGTERM).signal == "SIGINT"


def test_under_torchrun_the_second_ctrl_c_comes_as_sigterm(monkeypatch):
    """And one that reaches the agent and the worker comes twice."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert raised(signal.SIGINT, signal.SIGINT).signal == "SIGINT"
    assert raised(signal.SIGTERM, signal.SIGINT, signal.SIGTERM).signal == "SIGTERM"
    assert_interrupted(signal.SIGINT, signal.SIGTERM)


def test_under_torchrun_a_later_sigint_is_a_second_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr("pipeflow.workers.preemption._REPEATED_SECONDS", 0.0)
    assert_interrupted(signal.SIGINT, signal.SIGINT)


def test_what_was_to_be_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert not raised(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sigterm_of_a_loss_is_no_notice():
    notice = Notice(0)
    notice.is_of_a_loss = lambda: True
    with notice.listening(60, str):
        signal.raise_signal(signal.SIGTERM)
        assert not notice


def test_after_an_error_the_signals_are_given_back_when_it_has_been_told():
    notice = Notice(0)
    with pytest.raises(ZeroDivisionError), notice.listening(60, str):
        raise ZeroDivisionError
    signal.raise_signal(signal.SIGTERM)  # the launcher's, while the error is told; it would end the process in 5 s
    assert not notice
    notice.close()


def test_once_the_run_is_saved_a_repeated_signal_does_nothing():
    notice = Notice(0)
    with pytest.raises(Preempted), notice.listening(60, str):
        signal.raise_signal(signal.SIGTERM)
        raise Preempted
    signal.raise_signal(signal.SIGTERM)
    notice.close()


@pytest.mark.parametrize("is_of_a_loss", [False, True])
def test_with_several_machines_a_sigterm_is_held_back_until_a_loss_would_be_known(monkeypatch, is_of_a_loss):
    monkeypatch.setattr(preemption, "_HELD_SECONDS", 60)
    notice = Notice(1)
    notice.hears_late = True
    with notice.listening(60, str):
        signal.raise_signal(signal.SIGTERM)
        notice.settle()
        assert not notice
        notice.is_of_a_loss = lambda: is_of_a_loss
        monkeypatch.setattr(preemption, "_HELD_SECONDS", -1)
        notice.settle()
        assert bool(notice) is not is_of_a_loss
        monkeypatch.setattr(notice, "is_of_a_loss", lambda: False)
        notice.settle()
        assert bool(notice) is not is_of_a_loss, "a SIGTERM that was a loss's is no notice later"
        notice.hears_late = False
        signal.raise_signal(signal.SIGTERM)
        assert notice
