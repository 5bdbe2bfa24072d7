"""Flows and latents that depend on nothing but a seed, with parameters far from their initial values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeflow.flow import Flow, glow


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def perturbed() -> Callable[[nn.Module], nn.Module]:
    """Moves every parameter of a module away from its initial value, zero convolutions and masked entries included."""

    @torch.no_grad()
    def perturb(module: nn.Module, scale: float = 0.1) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        return module

    return perturb


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """Numbers from N(0, 1), always the same for a shape and a seed: `normal(4, 3, 8, 8, seed=2)`."""

    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return draw


@pytest.fixture
def flow(perturbed: Callable[[nn.Module], nn.Module]) -> Flow:
    """2 blocks of 2 steps on images of 3x8x8."""
    return perturbed(glow((3, 8, 8), 2, 2, 6))


@pytest.fixture
def x(normal: Callable[..., Tensor]) -> Tensor:
    """A batch for that flow."""
    return normal(4, 3, 8, 8)
