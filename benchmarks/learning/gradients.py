"""How far a part's own objective points where the whole flow's does, at a checkpoint of its local epochs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeflow.data.batches import dequantized_batches
from pipeflow.flow.cuts import configured_cuts, split_flow
from pipeflow.flow.heads import head_maker
from pipeflow.rundir.checkpoint import read_manifest, read_tensors
from pipeflow.rundir.saved_flow import open_flow


def cosines(checkpoint: Path, images: Tensor) -> list[float] | None:
    """For each part the cosine between its layers' gradients of its local loss and of the whole flow's loss.

    It is 1 for the last part, whose head is the flow's prior. None for a checkpoint without heads: of end-to-end epochs.

    images: uint8, [num, channels, height, width]; the losses are means over them.
    """
    saved = open_flow(checkpoint)
    assert saved.config is not None
    heads = read_tensors(checkpoint, read_manifest(checkpoint), lambda key: key.startswith("model/heads."))
    if not heads:
        return None
    flow, config = saved.flow, saved.config
    parts = split_flow(flow, configured_cuts(flow, config), head_maker(config.parts))
    (latent,) = dequantized_batches(images, flow.values, len(images))
    bits = -flow.log_prob(latent).mean()
    whole = [torch.autograd.grad(bits, _parameters(part.layers), retain_graph=True) for part in parts]
    found = []
    for part, expected in zip(parts, whole, strict=True):
        for name, tensor in part.global_state().items():
            if name.startswith("heads."):
                tensor.copy_(heads[f"model/{name}"])
        output = part(latent)
        own = torch.autograd.grad(part.loss(output), _parameters(part.layers))
        found.append(float(torch.cosine_similarity(_flat(own), _flat(expected), dim=0)))
        latent = part.outgoing(output)
    return found


def _parameters(layers: nn.ModuleList) -> list[nn.Parameter]:
    return list(layers.parameters())


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors])
