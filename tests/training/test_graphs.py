"""A recorded step is the step. On the CPU recorded work runs anew: all around the capture is tested, not the capture."""

import pytest
import torch
from test_trainer import CPU, NUM_UPDATES, assert_same, batch, load, options, saved, update

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow import glow, split_flow
from pipeflow.training.graphs import _WARM_UP, GraphedTrainer, make_trainer
from pipeflow.training.trainer import PartTrainer


class Again:
    """Records on the CPU: what was taken down runs again, on whatever lies in the tensors that it reads."""

    def __init__(self):
        self.warmed_up, self.recorded = 0, 0

    def warm_up(self, work):
        self.warmed_up += 1
        return work()

    def record(self, work):
        self.recorded += 1
        return work


def make_trainers(config: Config, recorder: Again | None, seed: int = 0) -> list[PartTrainer]:
    """A trainer of a whole flow, one that records where there is a recorder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = glow((3, 8, 8), 2, 2, 8, fold=True)
        flow.initialize(batch(100))
    (part,) = split_flow(flow, [])
    given = (part, CPU, config, config.optim.lr, NUM_UPDATES)
    trainer = PartTrainer(*given) if recorder is None else GraphedTrainer(*given, recorder)
    trainer.load_training({}, {}, same_stage=True)
    return [trainer]


ALL = options(ema=0.9, warmup_steps=4, decay="cosine", clip_norm=0.5)


def test_is_the_same_training_with_warm_up_decay_clipping_and_averages():
    recorder = Again()
    plain, recorded = make_trainers(ALL, None), make_trainers(ALL, recorder)
    update(plain, range(8))
    update(recorded, range(8))
    # The rate lies in a float32 tensor, and is a Python number else.
    torch.testing.assert_close(saved(recorded)[0], saved(plain)[0], rtol=1e-5, atol=1e-7)
    assert saved(plain)[1] == saved(recorded)[1]
    assert (recorder.warmed_up, recorder.recorded) == (2 * _WARM_UP, 2)


def test_goes_on_from_what_was_saved():
    straight = make_trainers(ALL, Again())
    update(straight, range(7))
    first, second = make_trainers(ALL, Again()), make_trainers(ALL, Again(), seed=7)
    update(first, range(5))
    load(second, saved(first))
    update(second, range(5, 7))
    assert_same(saved(straight)[0], saved(second)[0])


def test_what_leaves_is_not_overwritten_by_the_next_batch():
    (trainer,) = make_trainers(ALL, Again())
    update([trainer], range(_WARM_UP))
    latent = batch(0)
    output, loss = trainer.forward(latent)
    trainer.update(loss)
    assert not output.latent.requires_grad and not loss.requires_grad
    kept = output.latent.clone()
    lies_at = trainer._input.data_ptr()
    trainer.forward(batch(1))
    assert torch.equal(output.latent, kept) and trainer._input.data_ptr() == lies_at
    assert torch.equal(latent, batch(0)), "the recording has an input of its own"


def test_evaluation_is_not_recorded():
    recorder = Again()
    (trainer,) = make_trainers(ALL, recorder)
    update([trainer], range(_WARM_UP + 1))
    assert trainer.run(batch(3)[:5]).latent.shape[0] == 5
    assert recorder.recorded == 2


def test_is_what_precision_graphs_asks_for():
    (part,) = split_flow(glow((3, 8, 8), 1, 1, 4), [])
    assert type(make_trainer(part, CPU, Config(), 1e-3, 1)) is PartTrainer


@pytest.mark.parametrize(
    "sections, told",
    [
        ({"finetune": {"parallel": "ddp"}}, "finetune.parallel"),
        ({"memory": {"activations": "invert"}}, "memory.activations"),
    ],
)
def test_what_cannot_be_recorded(sections, told):
    with pytest.raises(ConfigError, match=f"precision.graphs: .* {told}"):
        Config.from_dict({"precision": {"graphs": True}, **sections})
