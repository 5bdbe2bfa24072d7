"""Latents through a link as dithered bytes, whose error is uniform noise; tests of the link have the casts."""

import itertools

import pytest
import torch

from pipeflow.links.channel import TRAINING, Channel
from pipeflow.links.codec import make_codec

SHAPE = (3, 8, 8)
LABEL = (TRAINING, 0, 0, 0)
SCALES = torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1)


def latents(batch: int = 200, shape=SHAPE) -> torch.Tensor:
    values = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    return values * SCALES.view(3, *[1] * (len(shape) - 1)) + 5


def through(channel: Channel, latent: torch.Tensor) -> torch.Tensor:
    payload = channel.encode(LABEL, latent)
    codec = channel.codec(TRAINING)
    assert tuple(payload.shape) == codec.payload_shape(len(latent)) and payload.dtype == codec.dtype
    assert payload.nbytes == codec.num_bytes(len(latent)) and payload.is_contiguous()
    return channel.decode(LABEL, payload)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 8, 8)])
def test_a_byte_a_value_and_two_numbers_a_channel(shape):
    latent = latents(shape=shape)
    received = through(Channel(0, shape, "int8"), latent)
    assert received.shape == latent.shape and received.dtype == torch.float32
    assert make_codec("int8", shape).num_bytes(200) == latent.numel() + 3 * 8


def test_the_error_is_uniform_over_a_step_of_each_channel_and_independent_of_the_value():
    latent = latents()
    error = through(Channel(0, SHAPE, "int8"), latent) - latent
    for channel in range(3):
        values = latent[:, channel].flatten()
        step = (values.max() - values.min()) / 255
        scaled = error[:, channel].flatten() / step
        assert scaled.abs().max() < 0.5 + 1e-3
        assert abs(scaled.mean()) < 0.01 and abs(scaled.var() - 1 / 12) < 0.002
        assert abs(torch.corrcoef(torch.stack([scaled, values]))[0, 1]) < 0.03
        where = ((values - values.min()) / step).frac()  # nor does it tell where between two levels a value was
        assert abs(torch.corrcoef(torch.stack([scaled, where]))[0, 1]) < 0.03


def test_both_ends_draw_one_dither_and_another_for_each_seed_batch_micro_batch_replica_and_link():
    latent, channel = latents(4), Channel(0, SHAPE, "int8", seed=3)
    first = through(channel, latent)
    assert torch.equal(first, through(channel, latent))
    payload = channel.encode(LABEL, latent)
    others = [Channel(1, SHAPE, "int8", 3), Channel(0, SHAPE, "int8", 4), Channel(0, SHAPE, "int8", 3, replica=1)]
    ends = [(each, LABEL) for each in others]
    ends += [(each, (TRAINING, 0, 0, 1)) for each in (channel, others[-1])] + [(channel, (TRAINING, 0, 1, 0))]
    decoded = [first, *(decoding.decode(label, payload) for decoding, label in ends)]
    for one, other in itertools.combinations(decoded, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e30])
def test_a_constant_channel_survives(value):
    latent = torch.full((2, 3, 2, 2), value)
    assert torch.allclose(through(Channel(0, (3, 2, 2), "int8"), latent), latent)
