"""The affine and additive coupling, its net, and the flow step that ends with it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeflow.flow.layers import ActNorm, InvertibleConv1x1, Layer, Shape, ZeroConv, sum_over_pixels


class CouplingNet(nn.Module):
    """A 3x3 convolution to `width` channels, a 1x1 and a 3x3 zero convolution; ActNorm and ReLU follow the first two.

    dtype: type that the convolutions run in. The output is float32 in any case.
    fold: computes each ActNorm as part of the convolution before it, channels last.
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self, num_inputs: int, num_outputs: int, width: int, dtype: torch.dtype = torch.float32, fold: bool = False
    ):
        super().__init__()
        self.dtype = dtype
        self.fold = fold
        self.conv_in = nn.Conv2d(num_inputs, width, 3, padding=1, bias=False)
        self.norm_in = ActNorm(width)
        self.conv_mid = nn.Conv2d(width, width, 1, bias=False)
        self.norm_mid = ActNorm(width)
        self.conv_out = ZeroConv(width, num_outputs)
        nn.init.normal_(self.conv_in.weight, std=0.05)
        nn.init.normal_(self.conv_mid.weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            if self.fold:
                return self._folded(x.contiguous(memory_format=torch.channels_last)).to(x.dtype)
            hidden = functional.relu(self.norm_in.normalize(self.conv_in(x)))
            hidden = functional.relu(self.norm_mid.normalize(self.conv_mid(hidden)))
            return self.conv_out(hidden)

    def _folded(self, x: Tensor) -> Tensor:
        # No backward needs a convolution's output, so ReLUs work in place and only their outputs stay in memory.
        hidden = functional.conv2d(x, *self.norm_in.folded_behind(self.conv_in.weight), padding=1).relu_()
        hidden = functional.conv2d(hidden, *self.norm_mid.folded_behind(self.conv_mid.weight)).relu_()
        return functional.conv2d(hidden, *self.conv_out.folded(), padding=1)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        hidden = self.conv_in(x)
        self.norm_in.initialize(hidden)
        hidden = self.conv_mid(functional.relu(self.norm_in.normalize(hidden)))
        self.norm_mid.initialize(hidden)


class Coupling(Layer):
    """Transforms the second half of the channels by functions of the first half, which a net computes.

    With an odd number of channels the first half is the smaller. Raises ValueError for less than 2 channels.

    kind: `affine` is `y2 = (x2 + t) * sigmoid(s + 2)`, with t and s the even and odd output channels of the net;
        `additive` is `y2 = x2 + t`.
    net_dtype, fold: see `CouplingNet`.
    """

    def __init__(
        self,
        num_channels: int,
        width: int,
        kind: str = "affine",
        net_dtype: torch.dtype = torch.float32,
        fold: bool = False,
    ):
        super().__init__()
        if num_channels < 2:
            raise ValueError(f"a coupling needs 2 channels or more to halve, got {num_channels}")
        self.kind = kind
        self.image_channels = num_channels
        self.num_kept = num_channels // 2
        num_changed = num_channels - self.num_kept
        num_outputs = 2 * num_changed if kind == "affine" else num_changed
        self.net = CouplingNet(self.num_kept, num_outputs, width, net_dtype, fold)

    def _shift_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(kept)
        if self.kind == "additive":
            return outputs, torch.zeros_like(outputs)
        return outputs[:, 0::2], functional.logsigmoid(outputs[:, 1::2] + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x[:, : self.num_kept], x[:, self.num_kept :]
        shift, log_scale = self._shift_and_log_scale(kept)
        changed = (changed + shift) * torch.exp(log_scale)
        return torch.cat([kept, changed], dim=1), log_scale.sum(dim=(1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        kept, changed = y[:, : self.num_kept], y[:, self.num_kept :]
        shift, log_scale = self._shift_and_log_scale(kept)
        return torch.cat([kept, changed * torch.exp(-log_scale) - shift], dim=1)

    def multiply_adds(self, shape: Shape) -> int:
        convolutions = (self.net.conv_in, self.net.conv_mid, self.net.conv_out.conv)
        return sum(convolution.weight.numel() for convolution in convolutions) * shape[1] * shape[2]

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        self.net.initialize(x[:, : self.num_kept])


class FlowStep(Layer):
    """ActNorm, invertible 1x1 convolution and coupling, one after the other.

    fold: computes the ActNorm and the 1x1 convolution as one map. The coupling net has its own option.
    """

    def __init__(self, actnorm: ActNorm, invconv: InvertibleConv1x1, coupling: Coupling, fold: bool = False):
        super().__init__()
        self.actnorm = actnorm
        self.invconv = invconv
        self.coupling = coupling
        self.fold = fold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fold:
            x = functional.conv2d(x, *self.actnorm.folded_before(self.invconv.matrix()))
            from_mixing = sum_over_pixels(self.actnorm.logdet() + self.invconv.logdet(), x)
        else:
            x, from_actnorm = self.actnorm(x)
            x, from_invconv = self.invconv(x)
            from_mixing = from_actnorm + from_invconv
        x, from_coupling = self.coupling(x)
        return x, from_mixing + from_coupling

    def inverse(self, y: Tensor) -> Tensor:
        return self.actnorm.inverse(self.invconv.inverse(self.coupling.inverse(y)))

    def output_shape(self, shape: Shape) -> Shape:
        for layer in (self.actnorm, self.invconv, self.coupling):
            shape = layer.output_shape(shape)
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        return self.invconv.multiply_adds(shape) + self.coupling.multiply_adds(shape)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        for layer in (self.actnorm, self.invconv, self.coupling):
            layer.initialize(x)
            x, _ = layer(x)
