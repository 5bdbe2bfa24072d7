"""End-to-end epochs as a pipeline over the workers, each with the parts that it holds: the one phase with a way back.

    worker 0   F0 F1 F2    B0 F3 B1    B2    B3 U     F: a slice of the batch forward, its latent goes on
                 \\  \\  \\   /     /     /     /        B: backward, the latent's gradient goes back
    worker 1      F0 F1  B0 F2 B1 F3 B2   B3 U        U: the update, of the whole batch

torch.distributed.pipelining has the order (`finetune.schedule`). With replicas each line of workers has a pipeline of its
own for its share of the batch, and the replicas of a part add up their gradients behind it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

from pipeflow.config import Config
from pipeflow.links.link import Link, ReceivingEnd, SendingEnd
from pipeflow.training.linked_stage import LinkedStage, Neighbours
from pipeflow.training.losses import Losses
from pipeflow.training.schedule import Phase
from pipeflow.training.trainer import PartTrainer
from pipeflow.training.worker import Worker
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.timeline import COMPUTE
from pipeflow.workers.world import World

End = TypeVar("End", SendingEnd, ReceivingEnd)

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
WHOLE = "0"
"""Key of the whole flow's losses, as of a single worker, whose flow is part 0."""


class PipelineWorker(Worker):
    """A worker whose parts train together with those of all others."""

    def __init__(self, pipeline: "Pipeline", *arguments: Any, **options: Any):
        """pipeline: this worker's; all else as for Worker."""
        super().__init__(*arguments, **options)
        self.backward_links = pipeline.backward_links
        self._pipeline = pipeline

    def _train_batch(self, phase: Phase, step: int, losses: Losses) -> None:
        pipeline = self._pipeline
        images = None if self.images is None else self._own_images("latents", phase.epoch, step)
        loss = pipeline.run(phase.epoch, step, images, self._labels_of(phase.epoch, step))
        pipeline.check(losses, phase, step, loss)
        with self._timeline.span(COMPUTE, f"update {step}"):
            pipeline.update()

    def _check_last_updates(self, phase: Phase, losses: Losses) -> None:
        self._pipeline.check_last_update(phase, losses)


class Pipeline:
    """One worker's place in its line: a stage, torch's schedule, and the update."""

    def __init__(
        self,
        world: World,
        config: Config,
        trainers: Sequence[PartTrainer],
        links: Mapping[int, Link],
        backward_links: Mapping[int, SendingEnd | ReceivingEnd],
        replicas: Replicas,
        num_parts: int,
    ):
        """All workers make theirs together, as making groups asks for.

        num_parts: of the whole flow. links, backward_links: this worker's ends, by the part in front.
        """
        parts = [trainer.part for trainer in trainers]
        share = replicas.share(config.optim.batch_size)
        self.backward_links = backward_links
        self._num_slices = config.finetune.micro_batches
        self._trainers = trainers
        self._replicas = replicas
        self._clip_norm = config.optim.clip_norm
        self._world = world
        self._values = parts[0].values
        self._num_parts = num_parts
        density_gradient = -1 / (self._values.nats_per_bit_per_dim * config.optim.batch_size)
        self._line = world.pipeline_line()
        self._stage = LinkedStage(
            parts,
            world.place,
            world.num_places,
            (share.stop - share.start) // self._num_slices,
            density_gradient,
            Neighbours(
                _end(links, parts[0].index - 1, ReceivingEnd),
                _end(links, parts[-1].index, SendingEnd),
                _end(backward_links, parts[-1].index, ReceivingEnd),
                _end(backward_links, parts[0].index - 1, SendingEnd),
            ),
            self._line,
            world.device,
            world.timeline,
        )
        # The gradients of a sum over images are added up; nothing is left to be divided.
        self._schedule = SCHEDULES[config.finetune.schedule](
            self._stage, self._num_slices, loss_fn=lambda log_density, _: log_density.sum() * density_gradient,
            scale_grads=False,
        )  # fmt: skip
        self._target = torch.zeros(share.stop - share.start, device=world.device)  # torch asks for one

    def run(self, epoch: int, step: int, images: Tensor | None, labels: Tensor | None = None) -> Tensor | None:
        """Forwards and backwards of a batch; in the last place the loss of its share, a mean in bits/dim.

        images: in the first place. labels: where a part takes them. Raises Stopped where the run stops before this batch.
        """
        self._stage.begin(epoch, step, labels)
        for trainer in self._trainers:
            trainer.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        inputs = () if images is None else (images,)
        is_last = self._stage.is_last
        self._schedule.step(*inputs, target=self._target if is_last else None, losses=losses, return_outputs=False)
        return torch.stack(losses).detach().sum() * self._replicas.size + self._values.offset if is_last else None

    def check(self, losses: Losses, phase: Phase, step: int, loss: Tensor | None) -> None:
        """Adds the loss in the last place, and checks what was recovered by inverting, before the update."""
        error = self._stage.reconstruction_error
        if loss is not None:
            losses.add(WHOLE, step, loss, error)
        elif error is not None:
            losses.check(str(self._trainers[0].part.index), step, 0.0, float(error))

    def update(self) -> None:
        """Adds up replicas' gradients, clips by the norm of the whole flow's, and updates all parts."""
        self._add_up_gradients()
        for trainer in self._trainers:
            trainer.measure()
        if self._clip_norm > 0:
            self._clip()
        for trainer in self._trainers:
            trainer.step()

    def check_last_update(self, phase: Phase, losses: Losses) -> None:
        """Recomputes what this worker's parts add to the last loss: losses are checked before each update.

        Damage by the last update would go unseen.
        """
        if self._stage.last_latent.numel() == 0:  # resumed behind the last batch
            return
        latent, labels, added = self._stage.last_latent, self._stage.labels_of_slice, 0.0
        for trainer in self._trainers:
            output = trainer.run(latent, labels)
            added += float((output.contribution + output.log_head).mean())
            latent = output.latent
        losses.check(str(self._trainers[0].part.index), phase.steps, -added / self._values.nats_per_bit_per_dim)

    def _add_up_gradients(self) -> None:
        replicas = self._replicas
        if replicas.size == 1:
            return
        for trainer in self._trainers:
            gradients = [each.grad for each in trainer.part.parameters() if each.grad is not None]
            together = torch.cat([gradient.flatten() for gradient in gradients])
            self._sum(together, replicas.group, f"waited for the gradients of update {trainer.updates} of its replicas")
            torch._foreach_copy_(
                gradients,
                [each.view_as(of) for each, of in zip(together.split([g.numel() for g in gradients]), gradients)],
            )
            if replicas.is_first:  # a ring sends 2 (n - 1) / n of them from each of n workers; the first counts for all
                self._world.traffic.add("gradients", 0, 0, 2 * (replicas.size - 1) * together.nbytes)

    def _clip(self) -> None:
        squares = torch.zeros(self._num_parts, dtype=torch.float64, device=self._world.device)
        for trainer in self._trainers:
            gradients = [each.grad for each in trainer.part.parameters() if each.grad is not None]
            squares[trainer.part.index] = nn.utils.get_total_norm(gradients).double().square()
        # Each place is summed with zeros alone, so that all workers have the same bits.
        self._sum(
            squares, self._line, f"waited for the norms of update {self._trainers[0].updates} of the other workers"
        )
        if self._world.place == 0:
            self._world.traffic.add("control", 0, 0, 2 * (self._world.num_places - 1) * squares.nbytes)
        norm = squares.sum().sqrt().float()
        for trainer in self._trainers:
            nn.utils.clip_grads_with_norm_(trainer.part.parameters(), self._clip_norm, norm)

    def _sum(self, tensor: Tensor, group: dist.ProcessGroup | None, doing: str) -> None:
        """Sums over a group. NCCL's sum waits on the GPU; gloo's would keep this thread from hearing the alarm."""
        if self._world.backend == "nccl":
            dist.all_reduce(tensor, group=group)
        else:
            self._world.alarm.call(lambda: dist.all_reduce(tensor, group=group), doing)


def _end(links: Mapping[int, Any], index: int, kind: type[End]) -> End | None:
    """This worker's end of a link to another one, if there is one."""
    link = links.get(index)
    return link if isinstance(link, kind) else None
