"""Glow as the package `normflows` makes it, in the shape of ours: the same mathematics, and a training step beside ours.

The flow is the package's own example (blocks of GlowBlock and Squeeze under MultiscaleFlow: LU form, channel split, sigmoid
scale), without classes and with GlowBase, the Gaussian of a mean and a log-scale a channel, as ours has it at the end. Its
factor-outs have that Gaussian too, where ours have openai's learned prior, a convolution: a little less work.
"""

import math
import warnings

import normflows
import torch
from torch import Tensor, nn

from benchmarks.step.systems import Case, Images, bits_per_dim, configuration


def make_glow(shape: tuple[int, int, int], model: dict, net_actnorm: bool) -> normflows.MultiscaleFlow:
    """The flow of `num_blocks` blocks of `num_steps` steps for images of this shape.

    net_actnorm: ActNorms in the coupling nets, as openai's have them; the package's default is without.
    """
    channels, height, width = shape
    num_blocks = model["num_blocks"]
    priors, flows, merges = [], [], []
    # From the latent to the image: level 0 is our last block.
    for level in range(num_blocks):
        block = num_blocks - 1 - level
        inside = channels * 2 ** (block + 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls torch.lu, which is deprecated
            steps = [
                normflows.flows.GlowBlock(
                    inside,
                    model["width"],
                    split_mode="channel",
                    scale_map="sigmoid",
                    use_lu=True,
                    net_actnorm=net_actnorm,
                )
                for _ in range(model["num_steps"])
            ]
        flows.append([*steps, normflows.flows.Squeeze()])
        ends_here = inside if level == 0 else inside // 2
        priors.append(normflows.distributions.GlowBase((ends_here, height >> (block + 1), width >> (block + 1))))
        if level > 0:
            merges.append(normflows.flows.Merge())
    return normflows.MultiscaleFlow(priors, flows, merges, class_cond=False)


class NormflowsStep:
    """Loss, backward, clipping and Adam of normflows' Glow, on the batches that ours trains on."""

    reconstruction_error = None

    def __init__(self, case: Case, options: dict, images: Images, device: torch.device):
        """options: `net_actnorm`; `compiled`: torch.compile of each block, whose code is compiled once a shape."""
        config = configuration(case, {})
        shape = images.batches.data.shape
        torch.manual_seed(config.run.seed)
        self.model = make_glow(shape, case.model, options["net_actnorm"])
        self.model.to(device)
        with torch.no_grad():
            # Its ActNorms initialise themselves. On the device: what tells them that they have is then a tensor of the CPU,
            # as in the package's example; moved to a GPU it would make each forward wait.
            self.model.forward_kld(images.batches.initial().to(device))
        if options.get("compiled"):
            _compile_blocks(self.model)
        self._images = images
        self._num_dims = math.prod(shape)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.lr)
        self._clip_norm = config.optim.clip_norm
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.multiply_adds = None

    def __call__(self) -> Tensor:
        """Trains on the next batch; the loss, scaled as ours so that clipping does the same."""
        loss = bits_per_dim(self.model.forward_kld(self._images()), self._num_dims)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        return loss.detach()


def _compile_blocks(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, normflows.flows.ActNorm):
            # A tensor that decides whether to initialise: each forward would wait for it, and no graph goes past it.
            del module.data_dep_init_done
            module.data_dep_init_done = 1.0
    for module in model.modules():
        if isinstance(module, normflows.flows.GlowBlock):
            module.inverse = torch.compile(module.inverse)
