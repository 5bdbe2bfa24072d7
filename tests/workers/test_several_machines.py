"""What workers on several machines know of each other: who has ended, and whether a message still comes."""

from tests.small_runs import finish

PROGRAMS = "tests.workers.programs"


def test_the_next_worker_is_seen_to_end(launch):
    assert "worker 0 lost worker 1" in finish(launch(3, "lost", entry=f"{PROGRAMS}.neighbours:main"))


def test_workers_that_end_together_lose_nobody(launch):
    output = finish(launch(3, "end", entry=f"{PROGRAMS}.neighbours:main"))
    assert output.count("nobody was lost") == 3 and "somebody" not in output


def test_a_control_message_that_both_have_begun_has_a_time_out(launch):
    output = finish(launch(2, entry=f"{PROGRAMS}.dead_connection:main"))
    assert "worker 1 was lost: nothing came over its control connection to worker 0 for 0.5 s" in output
    assert "run.control_timeout_s" in output and "while worker 0 waited for the losses of worker 1" in output
