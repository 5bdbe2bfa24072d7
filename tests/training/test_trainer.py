"""A part's trainer: learning rate, clipping, optimizers, averages, and what it saves and takes back, under any cut."""

import copy
import math
import re

import pytest
import torch

from pipeflow.config import Config, OptimConfig, PrecisionConfig
from pipeflow.flow import glow, split_flow
from pipeflow.training import stages
from pipeflow.training.train import train
from pipeflow.training.trainer import PartTrainer, learning_rate
from tests.small_runs import small_config

SHAPE = (3, 8, 8)
CUTS = {1: [], 2: ["blocks.1.squeeze"], 3: ["blocks.0.steps.1", "blocks.1.steps.1"]}
CPU = torch.device("cpu")
NUM_UPDATES = 5


def options(step: str = "fast", **changed) -> Config:
    """Nothing but the optimizer, unless an option says so."""
    optim = OptimConfig(**{"lr": 1e-2, "warmup_steps": 0, "decay": "none", **changed})
    return Config(optim=optim, precision=PrecisionConfig(step=step))


def batch(step: int) -> torch.Tensor:
    return 0.3 * torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(step))


def make_trainers(num_parts: int, config: Config, seed: int = 0, num_updates: int = NUM_UPDATES):
    """A trainer for each part of a flow with random parameters; the flow's values do not depend on the cuts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = glow(SHAPE, 2, 2, 8)
        flow.initialize(batch(100))
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    parts = split_flow(flow, CUTS[num_parts])
    trainers = [PartTrainer(part, CPU, config, config.optim.lr, num_updates) for part in parts]
    for trainer in trainers:
        trainer.load_training({}, {}, same_stage=True)
    return trainers


def update(trainers, steps, training=None) -> None:
    """Trains the parts of `training` (None: all) on the batches of `steps`."""
    for step in steps:
        latent = batch(step)
        for trainer in trainers:
            output, loss = trainer.forward(latent)
            latent = trainer.part.outgoing(output)
            if training is None or trainer.part.index in training:
                trainer.update(loss)


def saved(trainers) -> tuple[dict, dict]:
    """Copies of what the trainers would save."""
    tensors, counts = {}, {}
    for trainer in trainers:
        tensors.update({key: value.detach().clone() for key, value in trainer.tensors().items()})
        counts.update(copy.deepcopy(trainer.counts()))
    return tensors, counts


def load(trainers, state, same_stage=True) -> None:
    for trainer in trainers:
        trainer.load_model(state[0])
        trainer.load_training(*state, same_stage=same_stage)


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} differ, first {different[:3]}"


def values(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.part.global_parameters().values()]


def gradient_norm(trainer) -> float:
    squares = [p.grad.double().square().sum() for p in trainer.part.global_parameters().values() if p.grad is not None]
    return math.sqrt(sum(squares))


class TestLearningRate:
    @pytest.mark.parametrize(
        "warmup_steps, decay, table",
        [
            (1, "none", [1, 1, 1, 1, 1, 1, 1, 1]),
            (4, "none", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
            (10, "none", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
            (0, "cosine", [1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0, 0, 0]),
            (4, "cosine", [0.25, 0.480970, 0.640165, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0, 0, 0]),
        ],
    )
    def test_as_a_table(self, warmup_steps, decay, table):
        """A run that is resumed with more updates made than are planned must not climb the cosine again."""
        rates = [learning_rate(2.0, update, 8, warmup_steps, decay) for update in range(len(table))]
        assert rates == pytest.approx([2 * factor for factor in table], abs=2e-6)

    def test_each_update_uses_the_rate_of_its_number(self):
        (trainer,) = make_trainers(1, options(lr=1e-3, warmup_steps=2, decay="cosine"))
        for number in range(NUM_UPDATES):
            update([trainer], [number])
            rates = [group["lr"] for group in trainer.optimizer.param_groups]
            assert rates == [learning_rate(1e-3, number, NUM_UPDATES, 2, "cosine")]

    @pytest.mark.parametrize("part_lr, expected", [([1e-3, 2e-4, 3e-5], [1e-3, 2e-4, 3e-5]), (None, [5e-4] * 3)])
    def test_a_run_gives_each_part_its_rate(self, monkeypatch, tmp_path, part_lr, expected):
        def stop(worker, *arguments, **options):
            raise InterruptedError([trainer.lr for trainer in worker.trainers])

        monkeypatch.setattr(stages.Worker, "initialize", stop)
        with pytest.raises(InterruptedError, match=re.escape(str(expected))):
            train(small_config(tmp_path / "run", optim={"lr": 5e-4, "part_lr": part_lr}))


class TestClipping:
    def test_bounds_the_norm_of_each_part_s_gradient_and_changes_none_below_it(self):
        free, clipped, below = (make_trainers(3, options(clip_norm=bound)) for bound in (0.0, 1e-3, 1e9))
        for trainers in (free, clipped, below):
            update(trainers, [0])
        for theirs, ours, same in zip(free, clipped, below):
            norm = gradient_norm(theirs)
            assert norm > 1e-2, "the bound must have something to do"
            assert gradient_norm(ours) == pytest.approx(1e-3, rel=1e-3)
            for right, left, equal in zip(*(trainer.part.parameters() for trainer in (theirs, ours, same))):
                if right.grad is not None:
                    assert torch.allclose(left.grad, right.grad * (1e-3 / norm), rtol=1e-2, atol=1e-9)
                    assert torch.equal(equal.grad, right.grad)


class TestOptimizers:
    @pytest.mark.parametrize("step, tolerance", [("reference", 0.0), ("fast", 1e-6)])
    @pytest.mark.parametrize("name, kind", [("adam", torch.optim.Adam), ("adamax", torch.optim.Adamax)])
    def test_are_torch_s_own(self, name, kind, step, tolerance):
        (trainer,) = make_trainers(1, options(step, name=name, lr=3e-3, warmup_steps=2))
        copied = copy.deepcopy(trainer.part)
        reference = kind(copied.parameters(), lr=3e-3)
        for step, rate in enumerate([1.5e-3, 3e-3, 3e-3]):
            reference.param_groups[0]["lr"] = rate
            reference.zero_grad()
            copied.loss(copied(batch(step))).backward()
            reference.step()
        update([trainer], range(3))
        for ours, theirs in zip(trainer.part.parameters(), copied.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("step, fused", [("fast", True), ("reference", None)])
    def test_a_fast_update_is_one_kernel(self, step, fused):
        assert make_trainers(1, options(step))[0].optimizer.param_groups[0]["fused"] is fused

    def test_no_gradient_reaches_another_part_and_averages_move_with_their_part(self):
        trainers = make_trainers(3, options(ema=0.9))
        before = [(values(trainer), next(iter(trainer.averages.values())).clone()) for trainer in trainers]
        assert not trainers[0].run(batch(0)).log_head.requires_grad
        update(trainers, range(2), training={1})
        for index, (trainer, (old, average)) in enumerate(zip(trainers, before)):
            assert all(torch.equal(new, each) for new, each in zip(values(trainer), old)) == (index != 1)
            assert torch.equal(next(iter(trainer.averages.values())), average) == (index != 1)
            assert trainer.updates == (2 if index == 1 else 0)


class TestAverages:
    @pytest.mark.parametrize(
        "ema, decays", [(0.9, [2 / 11, 3 / 12, 4 / 13, 5 / 14]), (0.28, [2 / 11, 0.25, 0.28, 0.28])]
    )
    def test_ramp(self, ema, decays):
        (trainer,) = make_trainers(1, options(ema=ema))
        expected = [value.double() for value in values(trainer)]
        for step, decay in enumerate(decays):
            update([trainer], [step])
            expected = [decay * old + (1 - decay) * new for old, new in zip(expected, values(trainer))]
            for average, right in zip(trainer.averages.values(), expected):
                assert torch.allclose(average.double(), right, rtol=1e-5, atol=1e-6)

    def test_averaged_swaps_and_restores_after_an_exception_too(self):
        (trainer,) = make_trainers(1, options(ema=0.9))
        update([trainer], range(2))
        trained, state = values(trainer), saved([trainer])[0]
        with pytest.raises(KeyboardInterrupt), trainer.averaged():
            assert all(torch.equal(now, mean) for now, mean in zip(values(trainer), trainer.averages.values()))
            assert not torch.equal(values(trainer)[0], trained[0])
            raise KeyboardInterrupt
        assert_same(saved([trainer])[0], state)

    def test_off(self):
        (trainer,) = make_trainers(1, options())
        update([trainer], [0])
        with trainer.averaged():
            assert not trainer.averages and not [name for name in trainer.tensors() if name.startswith("ema/")]

    def test_switched_on_later_they_begin_at_the_present_weights(self):
        before = make_trainers(1, options())
        update(before, range(2))
        later = make_trainers(1, options(ema=0.9), seed=7)
        load(later, saved(before))
        for name, average in later[0].averages.items():
            assert torch.equal(average, before[0].part.global_parameters()[name])


@pytest.fixture(scope="module")
def unequal():
    """Parts 0, 1 and 2 of three that have made 4, 2 and 1 updates."""
    trainers = make_trainers(3, options(ema=0.9))
    for index, number in enumerate([4, 2, 1]):
        update(trainers, range(number), training={index})
    return trainers


class TestSavedState:
    @pytest.mark.parametrize("name", ["adam", "adamax"])
    @pytest.mark.parametrize("num_parts", [1, 3])
    def test_goes_on_as_if_nothing_had_happened(self, name, num_parts):
        optim = options(name=name, ema=0.9, warmup_steps=4, decay="cosine", clip_norm=0.5)
        straight = make_trainers(num_parts, optim)
        update(straight, range(5))
        first = make_trainers(num_parts, optim)
        update(first, range(3))
        second = make_trainers(num_parts, optim, seed=7)
        load(second, saved(first))
        update(second, range(3, 5))
        assert_same(saved(second)[0], saved(straight)[0])
        assert saved(second)[1] == saved(straight)[1]

    def test_counts(self, unequal):
        _, counts = saved(unequal)
        assert counts.keys() == {owner for trainer in unequal for owner in trainer.part.owners()}
        for trainer, number in zip(unequal, [4, 2, 1]):
            for owner in trainer.part.owners():
                steps = number if any(name.startswith(f"{owner}.") for name in trainer.part.global_parameters()) else 0
                assert counts[owner] == [number, steps]

    @pytest.mark.parametrize("num_parts", [1, 2])
    def test_a_new_cut_and_back(self, unequal, num_parts):
        """Each layer keeps its own moments and its own count, by which Adam corrects them; heads come and go."""
        other, back = (make_trainers(number, options(ema=0.9), seed=7) for number in (num_parts, 3))
        load(other, saved(unequal))
        load(back, saved(other))
        assert [each.updates for each in other] == {1: [4], 2: [4, 2]}[num_parts]
        tensors, counts = saved(unequal)
        for now, now_counts in (saved(other), saved(back)):
            of_layers = [key for key in tensors if "/heads." not in key]
            assert_same({key: now[key] for key in of_layers}, {key: tensors[key] for key in of_layers})
            assert all(now_counts[owner][1] == counts[owner][1] for owner in counts if not owner.startswith("heads."))

    def test_a_new_stage_warms_up_again_and_the_optimizer_counts_on(self):
        optim = options(lr=1e-3, warmup_steps=4)
        old = make_trainers(3, optim)
        update(old, range(3))
        for same_stage, rate in [(True, 1e-3), (False, 2.5e-4)]:
            new = make_trainers(3, optim, seed=7)
            load(new, saved(old), same_stage)
            assert [trainer.updates for trainer in new] == [3 if same_stage else 0] * 3
            update(new, [3])
            for trainer in new:
                assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
                assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {4}

    def test_steps_1_is_not_steps_10(self):
        """Names of layers that begin alike keep numbers of their own."""
        (part,) = split_flow(glow(SHAPE, 1, 11, 4), [])
        trainer = PartTrainer(part, CPU, options(), 1e-2, NUM_UPDATES)
        update([trainer], [0])
        tensors, _ = saved([trainer])
        counts = {owner: [1, number] for number, owner in enumerate(part.owners(), start=1)}
        trainer.load_training(tensors, counts, same_stage=True)
        for owner, count in trainer.counts().items():
            assert count == (counts[owner] if owner != "blocks.0.squeeze" else [1, 0])


def test_what_averaged_weights_hand_on_leaves_the_update_as_it_is():
    config = options(ema=0.9)
    (plain, _), (averaged, _) = make_trainers(2, config), make_trainers(2, config)
    for trainer in (plain, averaged):
        update([trainer], range(3))
    latent = batch(3)
    outputs = [trainer.forward(latent) for trainer in (plain, averaged)]
    handed_on = averaged.hand_on(latent, output=outputs[1][0], is_averaged=True)
    with averaged.averaged():
        assert torch.equal(handed_on, averaged.run(latent).latent)
    assert torch.equal(plain.hand_on(latent, output=outputs[0][0]), plain.run(latent).latent)
    assert not torch.allclose(handed_on, plain.run(latent).latent) and not handed_on.requires_grad
    for trainer, (_, loss) in zip((plain, averaged), outputs):
        trainer.update(loss)
    assert_same(saved([plain])[0], saved([averaged])[0])
