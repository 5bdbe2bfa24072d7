"""The optimizer that pipeflow's trainers use, for baselines that hold no PartTrainer."""

from collections.abc import Sequence

import torch
from torch import nn

from pipeflow.config import OptimConfig

_KINDS = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}


def make_optimizer(parameters: Sequence[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """As PartTrainer makes it."""
    return _KINDS[optim.name](parameters, lr=optim.lr)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
