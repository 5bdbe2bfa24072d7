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
from pipeflow.flow import Part
from pipeflow.flow.flow import PRIOR
from pipeflow.flow.labels import labels_for
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
        samples = draw_together(stages, num)
    if samples is None or stages.worker.images is None:
        return None
    return to_data(samples, values), to_data(next(stages.worker.images.test_batches(num, num)), values)


@torch.no_grad()
def draw_together(stages: Stages, num: int) -> Tensor | None:
    """Samples of the flow as it is now, [num, *shape], on rank 0. All workers that take part call this together.

    None elsewhere, and where a layer has no inverse.
    """
    world, parts = stages.world, [trainer.part for trainer in stages.worker.trainers]
    noise = generator(stages.config.run.seed, "samples")
    labels = labels_in_turn(num, stages.flow.num_classes)
    labels = None if labels is None else labels.to(world.device)
    latent: Tensor | None = None
    try:
        if parts[-1].head_name == PRIOR:
            latent = _from_the_prior(parts[-1], num, noise, labels)
        elif world.control.receive_json(world.rank + world.num_replicas, _WHAT):
            latent = _receive(stages, parts[-1], num, noise)
        for part in reversed(parts if latent is not None else []):
            assert latent is not None
            latent = _invert(part, latent.to(world.device), noise, labels)
            if part.index > 0 and part is not parts[0]:
                world.traffic.add("samples", part.index, part.index - 1, latent.nbytes)
    except NoInverse:
        latent = None
    if parts[0].index == 0:
        return latent
    below = world.rank - world.num_replicas
    world.control.send_json(latent is not None, below, _WHAT)
    if latent is not None:
        world.control.send(latent, below, "samples", _WHAT)
        world.control.send(noise.get_state(), below, "control", _WHAT)
    return None


def _from_the_prior(part: Part, num: int, noise: torch.Generator, labels: Tensor | None) -> Tensor:
    return part.head.sample(num, noise, SAMPLE_TEMPERATURE, **labels_for(part.head, labels))


def _receive(stages: Stages, part: Part, num: int, noise: torch.Generator) -> Tensor:
    """The latent behind a part, from the worker that holds the next one."""
    control, above = stages.world.control, stages.world.rank + stages.world.num_replicas
    latent = control.receive(torch.empty(num, *part.output_shape), above, _WHAT)
    noise.set_state(control.receive(torch.empty_like(noise.get_state()), above, _WHAT))
    return latent


def _invert(part: Part, latent: Tensor, noise: torch.Generator, labels: Tensor | None) -> Tensor:
    for _, layer in reversed(list(part.named_layers())):
        latent = layer.sample_inverse(latent, noise, SAMPLE_TEMPERATURE, **labels_for(layer, labels))
    return latent
