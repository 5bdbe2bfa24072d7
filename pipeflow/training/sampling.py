"""Samples while the run goes on: all workers draw them together, from the last part back to the first.

    worker 2   noise ─▶ part 2 inverted ─┐ latents, and where the noise has come to
    worker 1                             └─▶ part 1 inverted ─┐
    worker 0                                                  └─▶ part 0 inverted ─▶ samples

Each worker takes the noise up where the one before it left off, so the samples are those of `Flow.sample` on any number of
workers. They are no training: latents go as control messages, behind an evaluation, and are counted as `samples`.
"""

import torch
from torch import Tensor

from pipeflow.data.random import generator
from pipeflow.errors import NoInverse
from pipeflow.flow.flow import PRIOR
from pipeflow.flow.labels import labels_for
from pipeflow.flow.running import sample_layers
from pipeflow.training.stages import Stages
from pipeflow.use.sample import SAMPLE_TEMPERATURE, file_suffix, labels_in_turn, to_data

_WHAT = "the latents of samples"


def draw_beside_data(stages: Stages, num_test: int) -> tuple[Tensor, Tensor] | None:
    """Samples and as many test images, uint8, on rank 0; None elsewhere, and where the flow makes no images.

    All workers call this together, when nothing trains. num_test: test images that there are.
    """
    values, config = stages.flow.values, stages.config
    num = min(config.eval.num_samples, config.optim.batch_size, num_test)
    if num == 0 or file_suffix(values) != ".png" or not stages.takes_part or not stages.worker.trainers:
        return None
    with stages.averaged():
        try:
            samples = draw_together(stages, num)
        except NoInverse:
            return None
    if samples is None or stages.worker.images is None:
        return None
    return to_data(samples, values), to_data(next(stages.worker.images.test_batches(num, num)), values)


@torch.no_grad()
def draw_together(stages: Stages, num: int) -> Tensor | None:
    """Samples of the flow as it is now, [num, *shape], on rank 0; None elsewhere. All workers that take part call this.

    Raises NoInverse on rank 0 where a layer has no inverse, or the prior no samples.
    """
    world, parts, missing = stages.world, [trainer.part for trainer in stages.worker.trainers], ""
    noise, prior = generator(stages.config.run.seed, "samples"), parts[-1].head
    labels = labels_in_turn(num, stages.flow.num_classes)
    labels = None if labels is None else labels.to(world.device)
    latent = torch.empty(num, *parts[-1].output_shape)
    try:
        if parts[-1].head_name == PRIOR:
            latent = prior.sample(num, noise, SAMPLE_TEMPERATURE, **labels_for(prior, labels))
        else:
            _receive(stages, latent, noise)
        latent = latent.to(world.device)
        for part in reversed(parts):
            layers = [layer for _, layer in part.named_layers()]
            latent = sample_layers(layers, latent, noise, SAMPLE_TEMPERATURE, labels)
            if part is not parts[0]:  # as it would travel if each part had a worker
                world.traffic.add("samples", part.index, part.index - 1, latent.nbytes)
    except NoInverse as error:
        missing = str(error)
    if parts[0].index > 0:
        _send(stages, latent, noise, missing)
        return None
    if missing:
        raise NoInverse(missing)
    return latent


def _receive(stages: Stages, latent: Tensor, noise: torch.Generator) -> None:
    """Takes the latent, and where the noise has come to, from the worker of the next part. Raises NoInverse as it did."""
    control, above = stages.world.control, stages.world.rank + stages.world.num_replicas
    if missing := control.receive_json(above, _WHAT):
        raise NoInverse(missing)
    control.receive(latent, above, _WHAT)
    noise.set_state(control.receive(torch.empty_like(noise.get_state()), above, _WHAT))


def _send(stages: Stages, latent: Tensor, noise: torch.Generator, missing: str) -> None:
    """Hands both to the worker of the part before, or tells it what has no inverse."""
    control, below = stages.world.control, stages.world.rank - stages.world.num_replicas
    control.send_json(missing, below, _WHAT)
    if not missing:
        control.send(latent, below, "samples", _WHAT)
        control.send(noise.get_state(), below, "control", _WHAT)
