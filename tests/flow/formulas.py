"""openai/glow's nets written from their parameters, to compare with, and a small flow step."""

import torch
from torch.nn import functional

from pipeflow.flow import ActNorm, Coupling, FlowStep, InvertibleConv1x1


def flow_step(channels=4, form="lu", kind="affine", fold=False, width=5, dtype=torch.float32):
    coupling = Coupling(channels, width, kind, dtype, fold)
    return FlowStep(ActNorm(channels), InvertibleConv1x1(channels, form), coupling, fold)


def zero_conv(module, x):
    outputs = functional.conv2d(x, module.conv.weight, module.conv.bias, padding=1)
    return outputs * torch.exp(3 * module.log_scale)[None, :, None, None]


def coupling_net(net, x):
    for conv, norm in ((net.conv_in, net.norm_in), (net.conv_mid, net.norm_mid)):
        x = functional.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2)
        x = functional.relu((x + norm.bias[None, :, None, None]) * torch.exp(3 * norm.log_scale)[None, :, None, None])
    return zero_conv(net.conv_out, x)
