"""Exit bits/dim, from sums over batches."""

import math

import pytest

from pipeflow.flow import Values
from pipeflow.use.likelihood import exit_bits_per_dim


def test_an_exit_has_all_contributions_so_far_and_one_head():
    """2 images of 4 values: a nat is 1 / (8 ln 2) bits/dim."""
    nat = 1 / (8 * math.log(2))
    sums = [(10.0, -3.0), (20.0, -50.0), (-5.0, 7.0)]
    expected = [8 - (10 - 3) * nat, 8 - (30 - 50) * nat, 8 - (25 + 7) * nat]
    assert exit_bits_per_dim(sums, 2, Values((4,))) == pytest.approx(expected, rel=1e-15)
    assert exit_bits_per_dim([(0.0, 0.0)], 5, Values((3, 32, 32))) == [8.0]
    assert exit_bits_per_dim([], 2, Values((4,))) == []
