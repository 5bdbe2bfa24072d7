"""What surrounds a worker's loop: losses, exit bits/dim, shares of a batch, bytes, and the alarm that waits listen to."""

import itertools
import math
import queue
import threading
import time

import pytest
import torch

from pipeflow.errors import TrainingStopped, WorkerError
from pipeflow.training.losses import LARGEST_LOSS, Losses
from pipeflow.use.likelihood import exit_bits_per_dim
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.replicas import share_of
from pipeflow.workers.traffic import Traffic

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class TestLosses:
    @pytest.mark.parametrize("device", [CPU, GPU])
    def test_mean_of_each_part(self, device):
        """40 losses: on a GPU two looks at 16, and the rest at the end."""
        losses = Losses(3, device)
        for step in range(40):
            losses.add("0", step, torch.tensor(float(step)))
            losses.add("2", step, torch.tensor(5.0 if step else -1.0, dtype=torch.float64))
        assert losses.means() == {"0": 19.5, "2": (39 * 5 - 1) / 40}
        assert losses.means() == {"0": 19.5, "2": (39 * 5 - 1) / 40}

    def test_nothing_trained(self):
        assert Losses(0, CPU).means() == {}

    @pytest.mark.parametrize(
        "value, shown", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (1.5 * LARGEST_LOSS, "15000")]
    )
    def test_stops_at_once_and_names_part_epoch_and_step(self, value, shown):
        losses = Losses(7, CPU)
        losses.add("1", 0, torch.tensor(2.0))
        with pytest.raises(TrainingStopped) as error:
            losses.add("1", 12, torch.tensor(value))
        assert str(error.value) == f"the training loss of part 1 became {shown} bits/dim in epoch 7, step 12"

    @pytest.mark.parametrize("value", [LARGEST_LOSS, -2 * LARGEST_LOSS, 0.0])
    def test_takes_what_is_a_number(self, value):
        """A density may be as high as it likes: only a loss that is too large is a divergence."""
        losses = Losses(0, CPU)
        losses.add("0", 0, torch.tensor(value))
        assert losses.means() == {"0": value}

    def test_on_a_gpu_the_step_that_failed_is_named_not_the_one_that_looked(self):
        losses = Losses(2, GPU)
        for step in range(31):  # 16 are on their way when the next 16 begin
            losses.add("0", step, torch.tensor(math.nan if step == 4 else 1.0))
        with pytest.raises(TrainingStopped, match=r"part 0 became nan .* epoch 2, step 4$"):
            losses.add("0", 31, torch.tensor(1.0))

    def test_on_a_gpu_the_end_of_the_phase_looks_at_the_rest(self):
        losses = Losses(2, GPU)
        losses.add("0", 0, torch.tensor(math.nan))
        with pytest.raises(TrainingStopped, match="step 0"):
            losses.means()

    def test_recovered_activations_that_are_too_far_off_stop_the_run(self):
        losses = Losses(2, CPU, max_error=1e-3)
        losses.add("1", 4, torch.tensor(2.0), torch.tensor(9e-4))
        with pytest.raises(
            TrainingStopped, match=r"part 1 .* off by 2.0e-03 in epoch 2, before step 5, .*max_error 0.001"
        ):
            losses.add("1", 5, torch.tensor(2.0), torch.tensor(2e-3))

    def test_recovered_activations_that_are_no_number_stop_it_too(self):
        losses = Losses(2, GPU, max_error=1e-3)
        losses.add("1", 5, torch.tensor(2.0), torch.tensor(math.nan))
        with pytest.raises(TrainingStopped, match="off by nan"):
            losses.means()

    def test_latest(self):
        on_cpu, on_gpu = Losses(0, CPU), Losses(0, GPU)
        for step in range(33):
            on_cpu.add("0", step, torch.tensor(float(step)))
            on_gpu.add("0", step, torch.tensor(float(step)))
        assert (on_cpu.latest, on_gpu.latest) == ({"0": 32.0}, {"0": 15.0})

    def test_keeps_no_graph(self):
        losses = Losses(0, GPU)
        losses.add("0", 0, torch.ones(1, requires_grad=True).sum())
        ((_, kept),) = losses._waiting["0"]
        assert not kept.requires_grad


class TestExitBitsPerDim:
    def test_by_hand(self):
        """2 images of 4 values: a nat is 1 / (8 ln 2) bits/dim. B_k has all contributions so far and head k alone."""
        nat = 1 / (8 * math.log(2))
        sums = [(10.0, -3.0), (20.0, -50.0), (-5.0, 7.0)]
        expected = [8 - (10 - 3) * nat, 8 - (30 - 50) * nat, 8 - (25 + 7) * nat]
        assert exit_bits_per_dim(sums, 2, 4) == pytest.approx(expected, rel=1e-15)

    def test_a_flow_that_does_nothing_under_a_uniform_density(self):
        """log p(x) = 0 on the unit cube of values / 256: 8 bits/dim."""
        assert exit_bits_per_dim([(0.0, 0.0)], 5, 3072) == [8.0]

    def test_none(self):
        assert exit_bits_per_dim([], 2, 4) == []


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("batch_size", [8, 9, 15, 64])
def test_shares_cover_the_batch_in_order_and_differ_by_one_at_most(batch_size, world_size):
    images = list(range(batch_size))
    shares = [images[share_of(batch_size, world_size, rank)] for rank in range(world_size)]
    assert list(itertools.chain(*shares)) == images
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)


class TestTraffic:
    def test_counts_by_kind_and_ends_and_takes_them_once(self):
        traffic = Traffic()
        for payload in [("latents", 0, 1, 5), ("eval", 0, 1, 7), ("latents", 1, 2, 1), ("latents", 0, 1, 6)]:
            traffic.add(*payload)
        assert traffic.take() == [["eval", 0, 1, 7], ["latents", 0, 1, 11], ["latents", 1, 2, 1]]
        assert traffic.take() == []
        traffic.add("latents", 0, 1, 2)
        assert traffic.take() == [["latents", 0, 1, 2]]
        assert traffic.training == 14, "evaluation is not training"

    def test_nothing_is_lost_between_threads(self):
        """Four add while a fifth takes; each addition is slow enough for another thread to come between."""

        class SlowBytes(int):
            def __radd__(self, other):
                time.sleep(1e-4)
                return int(other) + int(self)

        traffic, taken, ended = Traffic(), [], threading.Event()

        def add(source: int) -> None:
            for _ in range(50):
                traffic.add("latents", source % 2, 1, SlowBytes(3))

        def take() -> None:
            while not ended.wait(1e-3):
                taken.extend(traffic.take())

        adders = [threading.Thread(target=add, args=[source]) for source in range(4)]
        taker = threading.Thread(target=take)
        for thread in [taker, *adders]:
            thread.start()
        for thread in adders:
            thread.join()
        ended.set()
        taker.join()
        taken.extend(traffic.take())
        assert traffic.training == sum(entry[3] for entry in taken) == 4 * 50 * 3
        assert sum(entry[3] for entry in taken if entry[1] == 1) == 2 * 50 * 3


class TestAlarm:
    def test_hands_on_items_and_puts_them(self):
        alarm, items = Alarm(), queue.Queue(1)
        alarm.check()
        alarm.put(items, "latent", 1.0, lambda: "")
        assert alarm.get(items, None, lambda: "") == "latent"

    def test_get_waits_for_an_item(self):
        alarm, items = Alarm(), queue.Queue()
        threading.Timer(0.1, items.put, ["late"]).start()
        assert alarm.get(items, 10.0, lambda: "") == "late"

    def test_put_waits_for_room(self):
        alarm, items = Alarm(), queue.Queue(1)
        items.put("first")
        threading.Timer(0.1, items.get).start()
        alarm.put(items, "second", 10.0, lambda: "")
        assert items.get() == "second"

    @pytest.mark.parametrize("kind", ["get", "put"])
    def test_too_late(self, kind):
        """The text is made when it is needed: it says how far things have come by then."""
        alarm, items, texts = Alarm(), queue.Queue(1), []
        if kind == "put":
            items.put("first")

        def late() -> str:
            texts.append(kind)
            return f"part 1 waited for step {len(texts)}"

        start = time.monotonic()
        with pytest.raises(WorkerError, match="^part 1 waited for step 1$"):
            alarm.get(items, 0.1, late) if kind == "get" else alarm.put(items, "second", 0.1, late)
        assert 0.1 <= time.monotonic() - start < 5
        assert items.qsize() == (kind == "put")
        alarm.check()

    @pytest.mark.parametrize("kind", ["get", "put"])
    @pytest.mark.parametrize("timeout", [None, 100.0])
    def test_tripped_by_another_thread(self, kind, timeout):
        alarm, items, error = Alarm(), queue.Queue(1), WorkerError("worker 2 was lost")
        if kind == "put":
            items.put("first")
        threading.Timer(0.1, alarm.trip, [error]).start()
        start = time.monotonic()
        with pytest.raises(WorkerError) as raised:
            if kind == "get":
                alarm.get(items, timeout, lambda: "too late")
            else:
                alarm.put(items, "second", timeout, lambda: "too late")
        assert raised.value is error
        assert time.monotonic() - start < 5

    def test_the_first_error_stays_and_nothing_goes_on(self):
        alarm, items, first = Alarm(), queue.Queue(), WorkerError("first")
        items.put("there already")
        alarm.trip(first)
        alarm.trip(WorkerError("second"))
        for call in (alarm.check, lambda: alarm.get(items, None, str), lambda: alarm.put(items, 1, None, str)):
            with pytest.raises(WorkerError, match="^first$"):
                call()
        assert items.qsize() == 1
