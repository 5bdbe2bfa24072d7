import itertools
import math

import pytest

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow import ActNorm, Flow, cut_names, local_heads, split_flow
from pipeflow.plan import make_plan
from pipeflow.plan.predict.machines import Machines, StepSeconds
from pipeflow.plan.predict.memory import copied_bytes
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.recommend import recommend
from pipeflow.plan.predict.scenario import Scenario
from pipeflow.plan.predict.work import Curve, layer_work
from pipeflow.plan.traffic import gradient_bytes, phase_link_bytes, replica_bytes, training_share
from pipeflow.training.schedule import Schedule, epoch_cost


def plan_of(**sections):
    return make_plan(Config.from_dict({"data": {"num_train": 1280, "num_test": 100}, **sections}))


@pytest.fixture(scope="module")
def small():
    return plan_of()


@pytest.fixture(scope="module")
def predictor_of(small):
    """Predictors for workers that take 1 ns for a multiply-add; the links are free unless a bandwidth is given."""
    counts = Predictor(small, Machines())

    def make(workers, bandwidth=1e18, **machines):
        machines = Machines(**{"workers": workers, "flops": 2e9, "bandwidth": bandwidth, **machines})
        return Predictor(small, machines, shared=counts)

    return make


FREE = Machines(workers=3, flops=2e9, bandwidth=1e18)


def test_without_speeds_a_run_takes_its_share_of_the_multiply_adds():
    """On one worker. That share is what the published runs took, see test_plan.py."""
    plan = plan_of(schedule={"mode": "alternate", "local_epochs": 6, "finetune_epochs": 3})
    predictor = Predictor(plan, Machines())
    ratio = predictor.local("alternate", predictor.cuts()[0]).run_seconds / predictor.end_to_end().run_seconds
    assert ratio == pytest.approx(training_share(plan.phases, plan.parts))


@pytest.mark.parametrize(
    "mode, dtype", [("concurrent", "float32"), ("alternate", "bfloat16"), ("sequential", "float32")]
)
def test_bytes_are_those_of_the_links(mode, dtype):
    """Of a local epoch for each part, on average."""
    config = {"schedule": {"mode": mode, "local_epochs": 3, "finetune_epochs": 0}, "link": {"dtype": dtype}}
    plan = plan_of(**config)
    predictor = Predictor(plan, Machines(workers=3))
    phases = Schedule(plan.config, 3, 20).phases()
    expected = sum(sum(phase_link_bytes(phase, plan.parts, 64, dtype)) for phase in phases) / 3
    assert predictor.local(mode, predictor.cuts()[0]).bytes == expected
    assert sum(plan.forward_bytes) / 3 == expected


def test_bytes_of_gradients_are_those_of_the_ring(small):
    found = Predictor(small, Machines(workers=4)).data_parallel()
    assert [each.bytes for each in found] == [gradient_bytes(small.parts, 4, 20), gradient_bytes(small.parts, 4, 5)]
    assert [each.batch_size for each in found] == [64, 256]


def test_on_free_links_each_system_takes_what_arithmetic_says(small, predictor_of):
    """Without a measurement nothing is fitted: forward 1, backward 2, per multiply-add."""
    predictor = predictor_of(3)
    whole = predictor.end_to_end().seconds
    macs = [part.multiply_adds() for part in small.parts]
    assert whole == pytest.approx(3 * 1280 * sum(macs) / 1e9)
    concurrent = predictor.local("concurrent", predictor.cuts()[0])
    assert whole * max(macs) / sum(macs) <= concurrent.seconds <= 1.1 * whole * max(macs) / sum(macs)
    assert predictor.data_parallel()[0].seconds == pytest.approx(whole / 3, rel=0.04)  # 64 images on 3 are 22 for one
    turns = [(sum(macs[: part + 1]) + 2 * macs[part]) / 3 / sum(macs) for part in range(3)]
    alone = Predictor(small, Machines(flops=2e9))
    assert alone.local("alternate", alone.cuts()[0]).seconds == pytest.approx(whole * sum(turns) / 3)


def test_replicas_share_the_batch_and_send_their_gradients(small, predictor_of):
    """Twice as fast where links are free, with the same latents and a ring a part."""
    predictor = predictor_of(6)
    cut = predictor.cuts()[0]
    one, two = predictor.local("concurrent", cut), predictor.local("concurrent", cut, 2)
    assert (two.workers, two.replicas, two.cut) == (6, 2, "across 3 x 2")
    assert two.seconds == pytest.approx(one.seconds / 2, rel=0.02) and two.memory < one.memory
    (phase,) = Schedule(small.config, 3, 20).phases()[:1]
    assert two.bytes == one.bytes + replica_bytes(phase, small.parts, 2)
    assert predictor_of(6, bandwidth=1e6).local("concurrent", cut, 2).seconds > two.seconds
    assert {each.cut for each in predictor.all() if each.replicas == 2} >= {"across 3 x 2"}
    assert all(each.replicas == 1 for each in Predictor(small, Machines(workers=3)).all() if each.parts > 1)


@pytest.mark.parametrize("latents", ["trained", "averaged"])
def test_a_balanced_cut_makes_the_busiest_worker_as_quick_as_any_cut_does(latents):
    """With the further forward of averaged weights too, which the last part does not make."""
    sections = {
        "model": {"num_steps": 8, "width": 8},
        "schedule": {"local_epochs": 1, "finetune_epochs": 0},
        "optim": {"ema": 0.9},
    }

    def plan_with(split):
        return plan_of(parts={"split": split, "num": 3, "head": "autoregressive", "latents": latents}, **sections)

    def busiest(parts):
        return epoch_cost(balanced.config, balanced.phases[0], parts, 3)

    balanced = plan_with("balanced")
    places, head = cut_names(balanced.flow, "balanced", 24), local_heads(balanced.config)  # before every step
    every = [split_flow(balanced.flow, cuts, head) for cuts in itertools.combinations(places, 2)]
    assert busiest(balanced.parts) == min(map(busiest, every))
    found = {cut.name: cut.starts for cut in Predictor(plan_with("across"), FREE).cuts()}
    assert found["balanced 3"] == tuple(part.names[0] for part in balanced.parts), "as the run will cut"


@pytest.mark.parametrize("plain_parts", [{}, {"split": "balanced", "num": 3}], ids=["across", "balanced"])
def test_pipelines_do_not_depend_on_what_isolated_parts_hand_on_or_stand_under(plain_parts):
    sections = {"model": {"num_steps": 8, "width": 8}, "optim": {"ema": 0.9}}
    plain, averaged = (
        Predictor(plan_of(parts=parts, **sections), FREE).all()
        for parts in (plain_parts, {**plain_parts, "head": "autoregressive", "latents": "averaged"})
    )
    slower, quicker = (
        next(each.seconds for each in ways if each.describe() == "concurrent, balanced 3") for ways in (averaged, plain)
    )
    assert quicker < slower
    ours, same = (
        [
            (each.describe(), each.seconds)
            for each in ways
            if each.system in ("gpipe", "1f1b") and "balanced" in each.cut
        ]
        for ways in (averaged, plain)
    )
    assert ours and ours == same


def test_micro_batches_need_the_activations_of_one_and_take_as_long_where_messages_cost_nothing(small, predictor_of):
    sliced = plan_of(memory={"micro_batches": 16}, link={"dtype": "int8"})
    whole, ours = predictor_of(6), Predictor(sliced, predictor_of(6).machines)
    for cut, same in zip(whole.cuts(), ours.cuts()):
        for replicas in (1, 2):
            plain, several = whole.local("concurrent", cut, replicas), ours.local("concurrent", same, replicas)
            assert plain.seconds * 0.9 < several.seconds < plain.seconds * 1.000001
            assert (plain.micro_batches, several.micro_batches) == (None, 16)
            (phase,) = Schedule(small.config, len(cut.parts), 20).phases()[:1]
            sent = sum(phase_link_bytes(phase, same.parts, 64, "int8", 16 * replicas))
            assert several.bytes == sent + replica_bytes(phase, same.parts, replicas)
    one_f_one_b = ours.pipeline_at("1f1b", ours.cuts()[0], 16)
    assert ours.local("concurrent", ours.cuts()[0]).memory < one_f_one_b.memory < 0.5 * plain_memory(whole)
    for plain, several in zip([whole.end_to_end(), *whole.data_parallel()], [ours.end_to_end(), *ours.data_parallel()]):
        assert several.seconds == pytest.approx(plain.seconds) and several.memory < plain.memory / 2
    handling = [
        Predictor(plan, Machines(workers=3, flops=2e9, bandwidth=1e18, message_seconds=0.01))
        for plan in (small, sliced)
    ]
    more = [each.local("concurrent", each.cuts()[0]).seconds for each in handling]
    assert more[1] - more[0] > 0.9 * 20 * 15 * 0.01, "15 messages more a batch"


def plain_memory(predictor: Predictor) -> float:
    return predictor.local("concurrent", predictor.cuts()[0]).memory


def test_a_pipeline_takes_its_best_number_of_micro_batches_and_sends_both_ways(small, predictor_of):
    predictor, costly = (predictor_of(3, pass_seconds=seconds) for seconds in (0.0, 1.0))
    cut = predictor.cuts()[0]
    assert predictor.pipeline("gpipe", cut).micro_batches == 16
    assert costly.pipeline("gpipe", cut).micro_batches == 2
    gpipe, one_f_one_b = (predictor.pipeline_at(kind, cut, 16) for kind in ("gpipe", "1f1b"))
    assert one_f_one_b.memory < gpipe.memory / 2
    values = [math.prod(part.output_shape) for part in small.parts[:-1]]
    sent = 2 * 20 * 64 * sum(4 * count + 8 for count in values)  # latents and densities forward, gradients back
    assert gpipe.bytes == one_f_one_b.bytes == sent


@pytest.mark.parametrize(
    "bandwidth, latency, machines",
    [(1e12, 0.0, {}), (1e7, 0.0, {"alone": 0.7}), (1e12, 1.0, {})],
    ids=["workers hold up", "a link holds up and workers share a machine", "a latency holds up"],
)
def test_an_epoch_is_as_long_as_one_that_is_simulated_to_its_end(bandwidth, latency, machines, monkeypatch):
    plan = plan_of(data={"num_train": 64 * 97})

    def found() -> list[float]:
        predictor = Predictor(plan, Machines(workers=3, flops=2e11, bandwidth=bandwidth, latency=latency, **machines))
        cut = predictor.cuts()[0]
        ways = [predictor.local(mode, cut) for mode in ("concurrent", "alternate")]
        return [each.seconds for each in [*ways, *(predictor.pipeline_at(kind, cut, 4) for kind in ("gpipe", "1f1b"))]]

    extrapolated, epoch = found(), Scenario.epoch
    monkeypatch.setattr(
        Scenario, "epoch", lambda self, programs, depth, period, **how: epoch(self, programs, depth, 97, **how)
    )
    # Where a latency holds up, `link.depth` batches arrive at once, and the last of them may be fewer.
    assert extrapolated == pytest.approx(found(), rel=0.04 if latency else 0.02 if machines else 0.005)


def test_the_copy_of_a_checkpoint_is_in_the_memory_of_a_worker_that_computes_on_the_cpu(small):
    on_cpu, elsewhere = (Predictor(plan, FREE) for plan in (plan_of(run={"device": "cpu"}), small))
    copied = copied_bytes(small.parts, ema=False)
    whole = on_cpu.end_to_end().memory - elsewhere.end_to_end().memory
    assert 0.98 * copied < whole < copied, "a whole flow has no heads"
    split = [predictor.local("concurrent", predictor.cuts()[0]).memory for predictor in (on_cpu, elsewhere)]
    assert 0 < split[0] - split[1] < whole


def test_recomputing_takes_a_forward_more_and_inverting_an_inverse_too_for_less_memory(small):
    predictors = [Predictor(plan_of(memory={"activations": each}), FREE) for each in ("keep", "recompute", "invert")]
    kept, recomputed, inverted = (predictor.end_to_end() for predictor in predictors)
    assert recomputed.seconds == pytest.approx(kept.seconds * 4 / 3)
    assert inverted.seconds == pytest.approx(kept.seconds * 5 / 3)
    assert inverted.memory < recomputed.memory < kept.memory * 0.6
    ways = [predictor.local("concurrent", predictor.cuts()[0]) for predictor in predictors[:2]]
    assert ways[1].seconds == pytest.approx(ways[0].seconds * 4 / 3, rel=0.01) and ways[1].memory < ways[0].memory


def test_a_flow_under_a_bucket_does_not_overlap_its_all_reduce(predictor_of):
    slow, free = (predictor_of(2, bandwidth).data_parallel()[0] for bandwidth in (1e6, 1e18))
    assert slow.seconds - free.seconds == pytest.approx(slow.bytes / 2 / (1e6 / 8))


def test_seconds_between_measured_batch_sizes_are_on_a_line():
    curve = Curve((8, 64, 128), (1.0, 2.0, 6.0))
    assert [curve.at(num) for num in (8, 36, 64, 96, 192)] == [1.0, 1.5, 2.0, 4.0, 10.0]
    assert Curve((8,), (2.0,)).at(32) == 8.0


def test_measured_runs_of_layers_are_shared_out_by_multiply_adds(small):
    steps = StepSeconds(batch_size=(64,), train={"blocks.0.squeeze": (3.0,), "blocks.1.squeeze": (6.0,)}, update=0.5)
    predictor = Predictor(small, Machines(step_seconds=steps))
    assert predictor.end_to_end().seconds == pytest.approx(20 * 9.5)
    work = layer_work(small.flow, predictor.machines)
    first = [name for name in small.flow.names if name.startswith("blocks.0.")]
    assert sum(work[name].forward(64) for name in first) == pytest.approx(1.0)
    wrong = StepSeconds(batch_size=(64,), train={"blocks.7.squeeze": (3.0,)})
    with pytest.raises(ConfigError, match=r"there is no layer 'blocks.7.squeeze'.*same model"):
        Predictor(small, Machines(step_seconds=wrong))


@pytest.mark.parametrize(
    "workers, flops, bandwidth, verdict, best",
    [
        (3, 2e9, 1e18, "data parallelism", None),
        (3, 2e12, 1e3, "one worker", None),
        (3, 2e10, 1e8, "pipeflow", ("concurrent", "blocks", 16)),  # between a hopeless link and a fast one
        (6, 2e9, 3e7, "pipeflow", ("concurrent", "balanced 2 x 3", 128)),
    ],
)
def test_parts_are_recommended_where_they_are_faster_and_only_there(
    predictor_of, workers, flops, bandwidth, verdict, best
):
    predictor = predictor_of(workers, bandwidth, flops=flops)
    advice = recommend(predictor, predictor.all())
    assert advice.verdict == verdict
    assert ("NOT the faster way" in " ".join(advice.sentences)) == (best is None)
    if best is not None:
        assert (advice.best.system, advice.best.cut, advice.batch_size) == best


def test_where_nothing_fits_the_least_is_named(predictor_of):
    predictor = predictor_of(3, 1e9, memory=1000)
    advice = recommend(predictor, predictor.all())
    assert advice.best is None and "Nothing fits" in advice.sentences[0]
    some = predictor_of(3, 1e9, memory=1.5e7).all()
    assert {each.fits for each in some} == {True, False}
    assert all(math.isfinite(each.seconds) and 0 <= each.idle < 1 for each in some)


def test_a_flow_without_products_has_a_share_and_no_time():
    bare = Flow([ActNorm(3), ActNorm(3)], (3, 4, 4))
    phases = plan_of(schedule={"local_epochs": 1, "finetune_epochs": 1}).phases
    assert training_share(phases, split_flow(bare, [])) == 1.0
    with pytest.raises(ConfigError, match="cannot be told from multiply-adds"):
        layer_work(bare, Machines(flops=1e12))
