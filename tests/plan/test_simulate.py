import pytest

from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.programs import PartCosts, local_programs, pipeline_programs
from pipeflow.plan.predict.simulate import Awaited, Message, Operation, SimulatedLink, Span, simulate

FREE = Machines().handling_seconds


def equal_parts(num: int, sent: float = 0.0) -> list[PartCosts]:
    """Forward 1 s, backward 2 s, nothing for the update."""
    last = num - 1
    return [PartCosts(1.0, 2.0, 0.0, sent * (index < last), index, 0.0, sent * (index < last)) for index in range(num)]


def spans(*texts: str) -> list[Span]:
    """`F0 0-1` as a span."""
    return [Span(name, *map(float, times.split("-"))) for name, times in map(str.split, texts)]


def test_concurrent_parts_on_free_links_have_no_bubble_after_the_fill():
    timeline = simulate(local_programs(equal_parts(3), (0, 1, 2), 3, FREE), SimulatedLink(depth=4))
    assert timeline.workers == [
        spans("F0 0-1", "BU0 1-3", "F1 3-4", "BU1 4-6", "F2 6-7", "BU2 7-9"),
        spans("F0 1-2", "BU0 2-4", "F1 4-5", "BU1 5-7", "F2 7-8", "BU2 8-10"),
        spans("F0 2-3", "BU0 3-5", "F1 5-6", "BU1 6-8", "F2 8-9", "BU2 9-11"),
    ]


def test_the_slowest_part_or_link_sets_the_pace():
    parts = [PartCosts(1, 2, 0, 0, 0), PartCosts(2, 4, 1, 0, 1), PartCosts(1, 1, 0, 0, 2)]
    short, long = (simulate(local_programs(parts, (0, 1, 2), num, FREE), SimulatedLink(depth=4)) for num in (20, 30))
    assert long.seconds - short.seconds == 10 * 7
    # 10 bytes at 2 bytes/s take 5 s, a part 3: and the latency is paid once.
    link = SimulatedLink(bytes_per_second=2.0, latency=7.0, depth=4)
    timeline = simulate(local_programs(equal_parts(2, sent=10), (0, 1), 3, FREE), link)
    assert timeline.workers[1] == spans("F0 13-14", "BU0 14-16", "F1 18-19", "BU1 19-21", "F2 23-24", "BU2 24-26")
    assert timeline.workers[0][-1] == Span("BU2", 7.0, 9.0)  # four may wait on the link


def test_a_full_link_holds_its_sender_up():
    """Depth 1 and an instant sender: one waits to be taken, one is on its way, one waits behind."""
    program = [Operation(f"F{index}", 1.0, (), (Message(1, str(index), 10.0),)) for index in range(4)]
    slow = [Operation(f"F{index}", 100.0, (Awaited(0, str(index)),)) for index in range(4)]
    link = SimulatedLink(bytes_per_second=10.0, depth=1)
    timeline = simulate([program, slow], link)
    # Message 0 is consumed at 2, so message 1 is sent from 2 to 3 and taken by worker 1 at 102; message 2 is taken from
    # the outbox at 3 and sent when message 1 is consumed; message 3 may be put then, having been computed from 3 on.
    assert timeline.workers[0] == spans("F0 0-1", "F1 1-2", "F2 2-3", "F3 3-4")
    assert timeline.workers[1] == spans("F0 2-102", "F1 102-202", "F2 202-302", "F3 302-402")
    more = [*program, Operation("F4", 1.0, (), (Message(1, "4", 10.0),)), Operation("F5", 1.0)]
    behind = [*slow, Operation("F4", 100.0, (Awaited(0, "4"),))]
    assert simulate([more, behind], link).workers[0][-1] == Span("F5", 103.0, 104.0)


def test_a_message_that_meets_its_receiver_travels_once_that_awaits_it():
    """10 bytes at 10 bytes/s: asked for, on its way, there. Messages wait for nobody without it."""
    program = [Operation(f"F{index}", 1.0, (), (Message(1, str(index), 10.0),)) for index in range(3)]
    slow = [Operation(f"F{index}", 4.0, (Awaited(0, str(index)),)) for index in range(3)]
    met = simulate([program, slow], SimulatedLink(bytes_per_second=10.0, latency=0.5, meets=True))
    assert met.workers[1] == spans("F0 2.5-6.5", "F1 8.5-12.5", "F2 14.5-18.5")
    ahead = simulate([program, slow], SimulatedLink(bytes_per_second=10.0, latency=0.5))
    assert ahead.workers[1] == spans("F0 2.5-6.5", "F1 6.5-10.5", "F2 10.5-14.5")
    assert met.workers[0] == ahead.workers[0] == spans("F0 0-1", "F1 1-2", "F2 2-3"), "no sender waits"


def test_in_the_turn_of_part_1_part_0_runs_forward_and_part_2_rests():
    timeline = simulate(local_programs(equal_parts(3), (1,), 2, FREE), SimulatedLink(depth=4))
    assert timeline.workers == [
        spans("F0 0-1", "F1 1-2"),
        spans("F0 1-2", "BU0 2-4", "F1 4-5", "BU1 5-7"),
        [],
    ]


def test_averaged_weights_take_another_forward_of_a_part_that_trains_in_front_of_another():
    programs = local_programs(equal_parts(3), (0, 1), 1, FREE, is_averaged=True)
    assert simulate(programs, SimulatedLink(depth=4)).workers == [
        spans("F0 0-2", "BU0 2-4"),
        spans("F0 2-3", "BU0 3-5"),
        [],
    ]


def test_on_one_worker_times_add_up():
    parts = [PartCosts(1, 2, 0.5, 99, 0), PartCosts(1, 2, 0.5, 0, 0)]
    timeline = simulate(local_programs(parts, (0, 1), 2, FREE), SimulatedLink(bytes_per_second=1.0, depth=1))
    assert timeline.seconds == 2 * 7 == timeline.busy()[0]


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
@pytest.mark.parametrize("num_stages, num_micro", [(2, 2), (3, 4), (3, 16), (4, 8)])
def test_the_bubble_of_a_pipeline_is_the_known_one(kind, num_stages, num_micro):
    timeline = simulate(pipeline_programs(kind, equal_parts(num_stages), num_micro, 1, FREE))
    idle = 1 - sum(timeline.busy()) / (num_stages * timeline.seconds)
    assert idle == pytest.approx((num_stages - 1) / (num_micro + num_stages - 1))


def test_pipelines_written_down():
    assert simulate(pipeline_programs("gpipe", equal_parts(2), 2, 1, FREE)).workers == [
        spans("F0.0 0-1", "F0.1 1-2", "B0.0 5-7", "B0.1 7-9", "U0 9-9"),
        spans("F0.0 1-2", "F0.1 2-3", "B0.0 3-5", "B0.1 5-7", "U0 7-7"),
    ]
    assert simulate(pipeline_programs("1f1b", equal_parts(2), 3, 1, FREE)).workers == [
        spans("F0.0 0-1", "F0.1 1-2", "B0.0 4-6", "F0.2 6-7", "B0.1 7-9", "B0.2 10-12", "U0 12-12"),
        spans("F0.0 1-2", "B0.0 2-4", "F0.1 4-5", "B0.1 5-7", "F0.2 7-8", "B0.2 8-10", "U0 10-10"),
    ]


def test_gradients_take_the_time_of_their_own_bytes_back():
    """Latents of 10 bytes and gradients of 5, at a byte a second."""
    parts = [PartCosts(1, 2, 0, 10, 0, 0, 5), PartCosts(1, 2, 0.5, 0, 1, 3.0)]
    assert simulate(pipeline_programs("gpipe", parts, 1, 1, FREE), SimulatedLink(bytes_per_second=1.0)).workers == [
        spans("F0.0 0-1", "B0.0 19-21", "U0 21-21"),
        spans("F0.0 11-12", "B0.0 12-14", "U0 14-17.5"),
    ]


def test_handling_messages_takes_the_computing_worker_time():
    parts = equal_parts(2, sent=10)
    handling = Machines(message_seconds=1.0, byte_seconds=0.1).handling_seconds
    timeline = simulate(local_programs(parts, (0, 1), 1, handling))
    assert [each[0] for each in timeline.workers] == [Span("F0", 0, 3), Span("F0", 3, 6)]


def test_workers_that_wait_for_each_other_are_an_error():
    program = [Operation("F", 1.0, (Awaited(1, "x"),), (Message(1, "y", 0),))]
    other = [Operation("G", 1.0, (Awaited(0, "y"),), (Message(0, "x", 0),))]
    with pytest.raises(ValueError, match="waits forever before F"):
        simulate([program, other])
