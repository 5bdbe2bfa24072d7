"""The alarm that every wait listens to: items, time-outs, and the first error of any thread."""

import queue
import threading
import time

import pytest

from pipeflow.errors import WorkerError, first_line
from pipeflow.workers.alarm import Alarm


def test_waits_end_with_what_is_waited_for():
    alarm, items = Alarm(), queue.Queue(1)
    threading.Timer(0.1, items.put, ["late"]).start()
    assert alarm.get(items) == "late"
    items.put("first")
    threading.Timer(0.1, items.get).start()
    alarm.keep_trying(lambda seconds: items.put("second", timeout=seconds), "waited for room", timeout=10.0)
    assert items.get() == "second"


def test_an_attempt_that_takes_too_long():
    """The text is made when it is needed: it says how far things have come by then."""
    alarm, items, texts = Alarm(), queue.Queue(1), []

    def late() -> str:
        texts.append(alarm.doing)
        return f"part 1 {alarm.doing}, step {len(texts)}"

    with pytest.raises(WorkerError, match="^part 1 waited for a latent, step 1$"):
        alarm.keep_trying(lambda seconds: items.get(timeout=seconds), "waited for a latent", 0.1, late)
    alarm.check()


@pytest.mark.parametrize("timeout", [None, 100.0])
def test_a_wait_ends_with_the_error_of_another_thread(timeout):
    alarm, items, error = Alarm(), queue.Queue(), WorkerError("worker 2 was lost")
    threading.Timer(0.1, alarm.trip, [error]).start()
    start = time.monotonic()
    with pytest.raises(WorkerError) as raised:
        alarm.keep_trying(lambda seconds: items.get(timeout=seconds), "waited", timeout)
    assert raised.value is error and time.monotonic() - start < 5


def test_the_first_error_stays_and_nothing_goes_on():
    alarm, items = Alarm(), queue.Queue()
    items.put("there already")
    alarm.trip(WorkerError("first"))
    alarm.trip(WorkerError("second"))
    for call in (alarm.check, lambda: alarm.get(items), lambda: alarm.listen(1.0)):
        with pytest.raises(WorkerError, match="^first$"):
            call()
    assert items.qsize() == 1


def test_a_loss_tells_what_this_worker_did():
    alarm = Alarm(3)
    with alarm.telling("waited for the latents of epoch 0, step 1"):
        error = alarm.loss("worker 2 was lost", first_line(RuntimeError("[gloo/pair.cc:1] Connection closed\nmore")))
    assert str(error) == (
        "worker 2 was lost, while worker 3 waited for the latents of epoch 0, step 1 (Connection closed). "
        "Start the same command again to resume."
    )
    assert alarm.doing == "computed"


def test_a_peer_that_waits_itself_is_given_time_to_report_the_failure():
    alarm = Alarm()
    alarm.doing_of = lambda peer: "waited for the latents of epoch 0, step 1"
    threading.Timer(0.1, alarm.trip, [WorkerError("worker 2 was lost")]).start()
    with pytest.raises(WorkerError, match="^worker 2 was lost$"):
        alarm.wait_for_culprit(1, "nothing came from worker 1")


def test_a_long_line_of_torch_is_cut_at_a_word():
    text = first_line(RuntimeError("[c10d/socket.cpp:9] " + "the peer went away " * 20))
    assert len(text) <= 160 and text.endswith((" the ...", " peer ...", " went ...", " away ..."))
