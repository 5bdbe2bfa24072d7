"""Bits per dimension are what the definition says."""

import math

import torch

from pipeflow.use.likelihood import bits_per_dim


def test_uniform_pixels_cost_eight_bits():
    # u ~ U(0, 1/256) under a uniform density on [-1/2, 1/2): log p(x) = 0.
    assert bits_per_dim(0.0, 3072) == 8.0


def test_bits_per_dim_is_the_definition():
    log_prob, dims = torch.tensor([9000.0, -120.5], dtype=torch.float64), 3072
    expected = -(log_prob - dims * math.log(256)) / (dims * math.log(2))
    result = bits_per_dim(log_prob, dims)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)
    assert isinstance(bits_per_dim(9000.0, dims), float)
