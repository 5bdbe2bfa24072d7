"""State dicts as y0ast/Glow-PyTorch saves them, and that model's likelihood, computed from such a dict in float64.

Written from its description: names number squeezes (which have no tensors), flow steps and splits in one row.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

NUM_BLOCKS, NUM_STEPS, WIDTH = 2, 3, 6
SHAPE = (3, 8, 12)


def other_state_dict(lu: bool, affine: bool, learn_top: bool = True, num_classes: int = 0) -> dict[str, Tensor]:
    """A small model of images of `SHAPE`, in which every tensor matters."""
    numbers = torch.Generator().manual_seed(5)

    def normal(*shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(shape, generator=numbers)

    state: dict[str, Tensor] = {}
    channels, (height, width) = SHAPE[0], SHAPE[1:]

    def zero_conv(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.conv.weight"] = normal(outputs, inputs, 3, 3)
        state[f"{name}.conv.bias"] = normal(outputs)
        state[f"{name}.logs"] = normal(outputs, 1, 1)

    def actnorm(name: str, size: int) -> None:
        state[f"{name}.bias"], state[f"{name}.logs"] = normal(1, size, 1, 1), normal(1, size, 1, 1)

    layer = 0
    for block in range(NUM_BLOCKS):
        channels, height, width = 4 * channels, height // 2, width // 2
        for _ in range(NUM_STEPS):
            layer += 1
            step = f"flow.layers.{layer}"
            actnorm(f"{step}.actnorm", channels)
            rotation = torch.linalg.qr(normal(channels, channels, scale=1.0))[0]
            if lu:
                permutation, lower, upper = torch.linalg.lu(rotation)
                state[f"{step}.invconv.p"] = permutation
                state[f"{step}.invconv.sign_s"] = upper.diagonal().sign()
                state[f"{step}.invconv.lower"] = lower + normal(channels, channels).triu()  # of which none counts
                state[f"{step}.invconv.log_s"] = upper.diagonal().abs().log()
                state[f"{step}.invconv.upper"] = upper.triu(1)
            else:
                state[f"{step}.invconv.weight"] = rotation.T  # saved as it lies in memory: not row by row
            state[f"{step}.block.0.conv.weight"] = normal(WIDTH, channels // 2, 3, 3)
            actnorm(f"{step}.block.0.actnorm", WIDTH)
            state[f"{step}.block.2.conv.weight"] = normal(WIDTH, WIDTH, 1, 1)
            actnorm(f"{step}.block.2.actnorm", WIDTH)
            zero_conv(f"{step}.block.4", WIDTH, channels if affine else channels // 2)
        if block < NUM_BLOCKS - 1:
            layer += 1
            zero_conv(f"flow.layers.{layer}.conv", channels // 2, channels)
            channels //= 2
        layer += 1
    if learn_top:
        zero_conv("learn_top_fn", 2 * channels, 2 * channels)
    if num_classes:
        for name, inputs, outputs in [("ycond", num_classes, 2 * channels), ("class", channels, num_classes)]:
            state[f"project_{name}.linear.weight"] = normal(outputs, inputs)
            state[f"project_{name}.linear.bias"], state[f"project_{name}.logs"] = normal(outputs), normal(outputs)
    state["prior_h"] = torch.zeros(1, 2 * channels, height, width)
    return state


def other_log_prob(state: dict[str, Tensor], x: Tensor, labels: Tensor | None = None) -> Tensor:
    """log p(x) of dequantized images under that model, given their labels if it takes some: [batch], float64."""
    state = {name: value.double() for name, value in state.items()}
    z, total = x.double(), torch.zeros(len(x), dtype=torch.float64)

    def zero_conv(name: str, inputs: Tensor) -> Tensor:
        outputs = functional.conv2d(inputs, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], padding=1)
        return outputs * (3 * state[f"{name}.logs"]).exp()

    def actnorm(name: str, inputs: Tensor) -> Tensor:
        return (inputs + state[f"{name}.bias"]) * state[f"{name}.logs"].exp()

    def gaussian(value: Tensor, mean: Tensor, logs: Tensor) -> Tensor:
        each = -0.5 * (math.log(2 * math.pi) + 2 * logs + (value - mean) ** 2 / (2 * logs).exp())
        return each.sum(dim=(1, 2, 3))

    layer = 0
    for block in range(NUM_BLOCKS):
        corners = [z[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        z = torch.stack(corners, dim=2).flatten(1, 2)
        pixels = z.shape[2] * z.shape[3]
        for _ in range(NUM_STEPS):
            layer += 1
            step = f"flow.layers.{layer}"
            z = actnorm(f"{step}.actnorm", z)
            matrix = _matrix(state, f"{step}.invconv")
            z = torch.einsum("oc,bchw->bohw", matrix, z)
            total = total + pixels * (state[f"{step}.actnorm.logs"].sum() + torch.linalg.slogdet(matrix)[1])
            kept, changed = z.chunk(2, dim=1)
            hidden = functional.conv2d(kept, state[f"{step}.block.0.conv.weight"], padding=1)
            hidden = actnorm(f"{step}.block.0.actnorm", hidden).relu()
            hidden = functional.conv2d(hidden, state[f"{step}.block.2.conv.weight"])
            hidden = actnorm(f"{step}.block.2.actnorm", hidden).relu()
            outputs = zero_conv(f"{step}.block.4", hidden)
            if outputs.shape == changed.shape:
                changed = changed + outputs
            else:
                scale = torch.sigmoid(outputs[:, 1::2] + 2)
                changed = (changed + outputs[:, 0::2]) * scale
                total = total + scale.log().sum(dim=(1, 2, 3))
            z = torch.cat([kept, changed], dim=1)
        if block < NUM_BLOCKS - 1:
            layer += 1
            z, taken_out = z.chunk(2, dim=1)
            moments = zero_conv(f"flow.layers.{layer}.conv", z)
            total = total + gaussian(taken_out, moments[:, 0::2], moments[:, 1::2])
        layer += 1
    moments = state["prior_h"]
    if "learn_top_fn.logs" in state:
        moments = zero_conv("learn_top_fn", moments)
    if labels is not None:
        weight, bias = state["project_ycond.linear.weight"], state["project_ycond.linear.bias"]
        one_hot = functional.one_hot(labels, weight.shape[1]).double()
        moments = moments + ((one_hot @ weight.T + bias) * (3 * state["project_ycond.logs"]).exp())[:, :, None, None]
    return total + gaussian(z, *moments.chunk(2, dim=1))


def _matrix(state: dict[str, Tensor], name: str) -> Tensor:
    if f"{name}.weight" in state:
        return state[f"{name}.weight"]
    diagonal = state[f"{name}.sign_s"] * state[f"{name}.log_s"].exp()
    lower = state[f"{name}.lower"].tril(-1) + torch.eye(len(diagonal))
    return state[f"{name}.p"] @ lower @ (state[f"{name}.upper"].triu(1) + diagonal.diag())
