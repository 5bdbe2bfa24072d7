"""A small RealNVP of a user's own layers on vectors, cut and trained by parts."""

import torch
from torch import nn

from pipeflow.flow import Flow, Layer, cut_names, split_flow


class DenseCoupling(Layer):
    """A coupling of RealNVP with a dense net, whose halves then change places. All else is left to defaults."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16))

    def forward(self, x):
        kept, moved = x.chunk(2, dim=1)
        shift, log_scale = self.net(kept).chunk(2, dim=1)
        return torch.cat([moved * log_scale.exp() + shift, kept], dim=1), log_scale.sum(dim=1)

    def inverse(self, y):
        moved, kept = y.chunk(2, dim=1)
        shift, log_scale = self.net(kept).chunk(2, dim=1)
        return torch.cat([kept, (moved - shift) * torch.exp(-log_scale)], dim=1)


def test_defaults_suit_dense_layers_and_parts_of_them_learn(normal):
    """Neighbours are alike in the images, so that there is something to learn."""
    smooth = nn.functional.interpolate(normal(64, 1, 2, 2), size=4, mode="bilinear")
    images = (0.3 * smooth + 0.05 * normal(64, 1, 4, 4)).flatten(1)
    own = Flow([DenseCoupling() for _ in range(4)], (16,))
    before = own.log_prob(images)
    own.initialize(images)
    latent, _, taken_out = own(images)
    assert torch.equal(own.log_prob(images), before) and not taken_out
    torch.testing.assert_close(own.inverse(latent, []), images, atol=1e-5, rtol=0)
    assert own.sample(3, torch.Generator().manual_seed(0)).shape == (3, 16)
    assert own.multiply_adds() == 4 * (8 * 16 + 16 * 16)
    assert cut_names(own, "balanced", 2) == ["layers.2"]

    parts = split_flow(own, ["layers.1", "layers.3"])
    assert parts[0].names == ["layers.0"] and parts[0].output_shape == (16,)
    assert parts[0].global_parameters()["heads.layers.1.mean"].shape == (16,)
    optimizers = [torch.optim.Adam(part.global_parameters().values(), lr=1e-2) for part in parts]
    history = []
    for _ in range(50):
        latent, total, exits = images, torch.zeros(64, dtype=torch.float64), []
        for part, optimizer in zip(parts, optimizers):
            output = part(latent)
            optimizer.zero_grad()
            part.loss(output).backward()
            optimizer.step()
            latent, total = part.outgoing(output), total + output.contribution.detach()
            exits.append(own.values.bits_per_dim((total + output.log_head).mean().item()))
        history.append(exits)
    assert all(last < first - 1 for first, last in zip(history[0], history[-1]))
