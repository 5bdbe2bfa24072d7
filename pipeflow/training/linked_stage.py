"""torch's pipeline stage, whose latents and gradients travel over pipeflow's links.

torch.distributed.pipelining has the order of forwards and backwards, and what each keeps for the other. It would send and
receive with operations that it waits for itself, deaf to the alarm; here the links do that at the same points, so that a
pipeline has their types, counts, threads and time-outs, and a lost worker is noticed as in local epochs:

    get_fwd_recv_ops   receives a latent and the log-density so far       get_bwd_recv_ops   receives the latent's gradient
    forward_one_chunk                                                     backward_one_chunk
    get_fwd_send_ops   sends both on                                      get_bwd_send_ops   sends the gradient back

Each returns no operations, so that nothing is left for torch to send. The loss is a sum over images, so each image's
log-density has one and the same gradient, which every stage knows: it is not sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from pipeflow.flow import Part
from pipeflow.links.channel import BACKWARD, FORWARD, Label
from pipeflow.links.link import ReceivingEnd, SendingEnd
from pipeflow.workers.timeline import COMPUTE, Timeline


@dataclass(frozen=True)
class Neighbours:
    """The links of a stage, forward and back; None where there is no stage before or behind it."""

    latents_in: ReceivingEnd | None
    latents_out: SendingEnd | None
    gradients_in: ReceivingEnd | None
    gradients_out: SendingEnd | None


class Parts(nn.Module):
    """Consecutive parts as one module: (latent, log-density so far) to the same, or in the last stage to log p(x)."""

    def __init__(self, parts: Sequence[Part], is_last: bool):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.is_last = is_last
        self.labels: Tensor | None = None
        """Labels of the slice that goes forward, where a part takes them: torch hands on latents and densities alone."""

    def forward(self, latent: Tensor, log_density: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        """latent: [batch, ...]; log_density: [batch], float64, None in the first stage."""
        total = log_density
        for part in self.parts:
            output = part(latent, self.labels)
            added = output.contribution + output.log_head  # which is 0 for all parts but the last
            latent, total = output.latent, added if total is None else total + added
        assert total is not None, "a stage has at least one part"
        return total if self.is_last else (latent.contiguous(), total)  # torch before 2.13 compares strides


class LinkedStage(PipelineStage):
    """This worker's parts as a stage, for slices of `num_images` images each."""

    def __init__(
        self,
        parts: Sequence[Part],
        index: int,
        num_stages: int,
        num_images: int,
        density_gradient: float,
        neighbours: Neighbours,
        group: dist.ProcessGroup | None,
        device: torch.device,
        timeline: Timeline,
    ):
        """density_gradient: of the loss, by an image's log-density. group: the workers of the pipeline, in order."""
        is_last = index == num_stages - 1
        density = torch.empty(num_images, dtype=torch.float64, device="meta")
        latent_in, latent_out = (
            torch.empty(num_images, *shape, device="meta", requires_grad=True)
            for shape in (parts[0].input_shape, parts[-1].output_shape)
        )
        module = Parts(parts, is_last)
        super().__init__(
            module,
            index,
            num_stages,
            device,
            input_args=(latent_in, density) if index else (latent_in.detach(),),
            output_args=(density.requires_grad_(),) if is_last else (latent_out, density.detach().requires_grad_()),
            group=group,
        )
        self._parts = parts
        self._module = module
        self._labels: Tensor | None = None
        self._num_images = num_images
        self._density_gradient = torch.full((num_images,), density_gradient, dtype=torch.float64, device=device)
        self._neighbours = neighbours
        self._timeline = timeline
        self._first_payload: Tensor | None = None
        self.epoch, self.step = 0, 0
        self.last_latent = self._nothing = torch.empty(0, device=device)
        """The latent that the last slice came with."""
        self.reconstruction_error: Tensor | None = None
        """Largest error of what the parts recovered in the batch's backwards, where they invert their layers."""

    @property
    def labels_of_slice(self) -> Tensor | None:
        """Labels of the slice that went forward last."""
        return self._module.labels

    def begin(self, epoch: int, step: int, labels: Tensor | None = None) -> None:
        """A batch begins: waits for the first slice's latent. Raises Stopped where the run stops before this batch.

        labels: of all its slices, where a part takes them.
        """
        self.epoch, self.step, self.reconstruction_error = epoch, step, None
        self._labels = labels
        if self._neighbours.latents_in is not None:
            self._first_payload = self._neighbours.latents_in.receive_payload(self._label(FORWARD, 0))

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        link = self._neighbours.latents_in
        if link is not None:
            label = self._label(FORWARD, fwd_chunk_id)
            payload, self._first_payload = self._first_payload, None
            if payload is None:
                payload = link.receive_payload(label)
            latent, density = link.channel.decode_with_density(label, payload, self._num_images)
            infos = self.args_recv_info[fwd_chunk_id]
            infos[0].buffer, infos[1].buffer = latent.requires_grad_(), density
        return []

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        link = self._neighbours.latents_out
        if link is not None:
            (latent, density), _ = self.fwd_cache[fwd_chunk_id]
            label = self._label(FORWARD, fwd_chunk_id)
            payload = link.channel.encode_with_density(label, latent.detach(), density.detach())
            link.send_payload(label, payload, self._num_images)
        return []

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        link = self._neighbours.gradients_in
        if link is not None:
            gradient = link.receive(BACKWARD, self.epoch, self.step, bwd_chunk_id)
            infos = self.grad_recv_info[bwd_chunk_id]
            infos[0].buffer, infos[1].buffer = gradient, self._density_gradient
        return []

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        link = self._neighbours.gradients_out
        gradient, *_ = self.bwd_cache.pop(bwd_chunk_id)
        if link is not None:
            assert gradient is not None, "a latent has a gradient"
            link.send(BACKWARD, self.epoch, self.step, gradient, bwd_chunk_id)
        # torch keeps what it has received until the next batch; the backward was the last to need it.
        for info in (*self.args_recv_info[bwd_chunk_id], *self.grad_recv_info[bwd_chunk_id]):
            info.buffer = self._nothing
        return []

    def forward_one_chunk(self, fwd_chunk_id: int, args: tuple[Any, ...], *others: Any, **options: Any) -> Any:
        latent = args[0] if self.is_first else self.args_recv_info[fwd_chunk_id][0].buffer
        assert latent is not None, "a slice is received before its forward"
        self.last_latent = latent.detach()
        first = fwd_chunk_id * self._num_images
        self._module.labels = None if self._labels is None else self._labels[first : first + self._num_images]
        with self._timeline.span(COMPUTE, f"forward {self.step}.{fwd_chunk_id}"):
            return super().forward_one_chunk(fwd_chunk_id, args, *others, **options)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **options: Any) -> None:
        with self._timeline.span(COMPUTE, f"backward {self.step}.{bwd_chunk_id}"):
            super().backward_one_chunk(bwd_chunk_id, *arguments, **options)
        for error in (part.reconstruction_error for part in self._parts):
            if error is not None:
                before = self.reconstruction_error
                self.reconstruction_error = error if before is None else torch.maximum(before, error)

    # torch asks the neighbours whether all know their shapes, with sends that no alarm wakes; here all do.

    def _warmup_forward_vote(self, has_backward: bool, received_acc: Tensor | None = None) -> Tensor:
        return torch.ones(1, dtype=torch.int32)

    def _warmup_backward_result(self, received_result: Tensor | None = None) -> Tensor:
        return torch.ones(1, dtype=torch.int32)

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        """The same in torch before 2.13."""
        return []

    def _label(self, kind: str, number: int) -> Label:
        return kind, self.epoch, self.step, number
