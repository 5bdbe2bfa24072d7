"""A flow for rows of a table, or points of a plane: affine couplings whose nets are dense (RealNVP, Dinh et al. 2017).

model: {name: "pipeflow.flow.dense:dense", num_blocks: 3, num_steps: 4, width: 64}
"""

import torch
from torch import Tensor, nn

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow.flow import Flow
from pipeflow.flow.layers import Layer, Shape
from pipeflow.flow.priors import ClassPrior


class DenseStep(Layer):
    """Normalises each value, couples the second half of them to the first, and turns their order round.

    x: [batch, num_values], num_values >= 2. Scale and bias are set from the first batch, so that columns of a table may
    have units of any size. A coupling's scale is between 1/e and e; at the start it changes nothing.
    """

    initialized: Tensor

    def __init__(self, num_values: int, width: int):
        super().__init__()
        self.num_values = num_values
        self.num_kept = num_values // 2
        self.bias = nn.Parameter(torch.zeros(num_values))
        self.log_scale = nn.Parameter(torch.zeros(num_values))
        self.register_buffer("initialized", torch.tensor(False))
        last = nn.Linear(width, 2 * (num_values - self.num_kept))
        self.net = nn.Sequential(nn.Linear(self.num_kept, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def _shift_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.net(kept).chunk(2, dim=1)
        return shift, torch.tanh(raw)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x + self.bias) * self.log_scale.exp()
        kept, changed = x[:, : self.num_kept], x[:, self.num_kept :]
        shift, log_scale = self._shift_and_log_scale(kept)
        changed = (changed + shift) * log_scale.exp()
        return torch.cat([kept, changed], dim=1).flip(1), self.log_scale.sum() + log_scale.sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        y = y.flip(1)
        kept, changed = y[:, : self.num_kept], y[:, self.num_kept :]
        shift, log_scale = self._shift_and_log_scale(kept)
        x = torch.cat([kept, changed * torch.exp(-log_scale) - shift], dim=1)
        return x * torch.exp(-self.log_scale) - self.bias

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (self.num_values,):
            raise ValueError(f"it was made for rows of {self.num_values} values")
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        return sum(each.weight.numel() for each in self.net if isinstance(each, nn.Linear))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        if self.initialized:
            return
        self.bias.copy_(-x.mean(dim=0))
        self.log_scale.copy_(-torch.log(x.std(dim=0, correction=0) + 1e-6))
        self.initialized.fill_(True)


def dense(config: Config, shape: Shape) -> Flow:
    """A flow of layers `blocks.B.steps.S` for rows of a table, as many as `model` says: a function for `model.name`.

    With `model.num_classes` its top prior is given the label.

    Raises ConfigError where the data are no rows of two values or more.
    """
    if len(shape) != 1 or shape[0] < 2:
        raise ConfigError(
            f"model.name: {config.model.name} takes rows of two values or more, but the data have the shape {list(shape)}."
        )
    model = config.model
    steps = {
        f"blocks.{block}.steps.{step}": DenseStep(shape[0], model.width)
        for block in range(model.num_blocks)
        for step in range(model.num_steps)
    }
    return Flow(steps, shape, None if model.num_classes is None else ClassPrior(shape, model.num_classes))
