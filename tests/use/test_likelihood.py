"""Bits per dimension are what the definition says, of whole flows and of exits."""

import math

import pytest
import torch

from pipeflow.use.likelihood import bits_per_dim, exit_bits_per_dim


def test_bits_per_dim_is_the_definition():
    log_prob, dims = torch.tensor([9000.0, -120.5], dtype=torch.float64), 3072
    expected = -(log_prob - dims * math.log(256)) / (dims * math.log(2))
    result = bits_per_dim(log_prob, dims)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)
    assert isinstance(bits_per_dim(9000.0, dims), float)
    assert bits_per_dim(0.0, dims) == 8.0, "u ~ U(0, 1/256) under a uniform density on [-1/2, 1/2)"


def test_an_exit_has_all_contributions_so_far_and_one_head():
    """2 images of 4 values: a nat is 1 / (8 ln 2) bits/dim."""
    nat = 1 / (8 * math.log(2))
    sums = [(10.0, -3.0), (20.0, -50.0), (-5.0, 7.0)]
    expected = [8 - (10 - 3) * nat, 8 - (30 - 50) * nat, 8 - (25 + 7) * nat]
    assert exit_bits_per_dim(sums, 2, 4) == pytest.approx(expected, rel=1e-15)
    assert exit_bits_per_dim([(0.0, 0.0)], 5, 3072) == [8.0]
    assert exit_bits_per_dim([], 2, 4) == []
