"""A driver that is interrupted: the training is asked to stop, and its end waited for."""

import os
import signal
import threading

import pytest

from pipeflow.ray.stopping import run_until_stopped


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handler of SIGINT, which a test runner may have replaced, and both handlers as they were."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before[1]
    signal.signal(signal.SIGINT, before[0])


class Training:
    """Gets a signal, then runs until it is asked to stop, and gets the signal again if it has not to end."""

    def __init__(self, number: int, *, hears: bool = True, ends: bool = True):
        self.number, self.hears, self.ends = number, hears, ends
        self.asked, self.left = threading.Event(), threading.Event()

    def fit(self) -> str:
        os.kill(os.getpid(), self.number)
        self.asked.wait(30)
        if not self.ends:
            os.kill(os.getpid(), self.number)
            self.left.wait(30)
        return "saved"

    def ask(self) -> bool:
        self.asked.set()
        return self.hears


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_training_is_asked_to_stop_and_saves(number, capsys):
    training = Training(number)
    assert run_until_stopped(training.fit, training.ask) == "saved"
    assert capsys.readouterr().err == "stopping: the workers save the run. Once more ends them at once.\n"


def test_a_second_one_does_not_wait():
    training = Training(signal.SIGINT, ends=False)
    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(training.fit, training.ask)
    training.left.set()


def test_workers_that_have_not_started_are_not_waited_for(capsys):
    training = Training(signal.SIGINT, hears=False, ends=False)
    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(lambda: (os.kill(os.getpid(), signal.SIGINT), training.left.wait(30)), training.ask)
    training.left.set()
    assert capsys.readouterr().err == ""


def test_an_error_of_the_training_is_raised():
    with pytest.raises(ZeroDivisionError):
        run_until_stopped(lambda: 1 // 0, lambda: True)
