"""Bits per dimension are what the definition says, of 8-bit values, of padded ones and of floats."""

import math

import pytest
import torch

from pipeflow.flow import Values

LOG_PROB = torch.tensor([9000.0, -120.5], dtype=torch.float64)


def test_bits_per_dim_is_the_definition():
    values, dims = Values((3, 32, 32)), 3072
    expected = -(LOG_PROB - dims * math.log(256)) / (dims * math.log(2))
    result = values.bits_per_dim(LOG_PROB)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)
    assert isinstance(values.bits_per_dim(9000.0), float)
    assert values.bits_per_dim(0.0) == 8.0, "u ~ U(0, 1/256) under a uniform density on [-1/2, 1/2)"


def test_padded_images_cost_the_code_of_all_values_over_their_own():
    values = Values((1, 28, 28), padding=(4, 4))
    assert values.padded_shape == (1, 32, 32)
    expected = -(LOG_PROB - 1024 * math.log(256)) / (784 * math.log(2))
    torch.testing.assert_close(values.bits_per_dim(LOG_PROB), expected, rtol=0, atol=1e-13)
    # A flow that knows all padding exactly, density 256 for each of its values, pays nothing for it.
    assert values.bits_per_dim((1024 - 784) * math.log(256)) == pytest.approx(8)


def test_floats_have_no_bits_of_their_own():
    values = Values((2,), is_float=True)
    assert values.bits_per_dim(2 * math.log(2)) == -1.0 and values.bits_per_dim(0.0) == 0.0
    assert values.nats(values.bits_per_dim(-3.5)) == pytest.approx(3.5)


def test_padding_repeats_the_edges_and_goes_again():
    images = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    values = Values((1, 3, 4), padding=(3, 1))
    padded = values.pad(images)
    assert padded[0, 0].tolist() == [
        [0, 1, 2, 3, 3],
        [0, 1, 2, 3, 3],
        [4, 5, 6, 7, 7],
        [8, 9, 10, 11, 11],
        [8, 9, 10, 11, 11],
        [8, 9, 10, 11, 11],
    ]
    assert padded.shape[1:] == values.padded_shape and torch.equal(values.crop(padded), images)
    assert Values((1, 3, 4)).pad(images) is images
