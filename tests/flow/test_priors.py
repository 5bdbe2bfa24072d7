"""Priors and heads against torch.distributions."""

import pytest
import torch
from safetensors.torch import load, save
from torch.distributions import Normal

from pipeflow.flow import GaussianPrior
from pipeflow.flow.heads import HEADS

SHAPES = [(3, 2, 4), (5,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", HEADS)
class TestEveryHead:
    def test_starts_as_the_standard_normal(self, kind, shape, normal):
        latent = normal(4, *shape)
        log_prob = HEADS[kind](shape).log_prob(latent)
        assert log_prob.shape == (4,) and log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, Normal(0, 1).log_prob(latent).flatten(1).sum(dim=1))

    def test_samples_follow_the_seed_and_the_temperature(self, kind, shape, perturbed):
        prior = perturbed(HEADS[kind](shape))
        mean, cool, warm, again, other = (
            prior.sample(3, torch.Generator().manual_seed(seed), temperature)
            for seed, temperature in ((0, 0.0), (0, 0.5), (0, 1.0), (0, 1.0), (1, 1.0))
        )
        assert warm.shape == (3, *shape) and warm.dtype == torch.float32
        assert torch.equal(warm, again) and not torch.equal(warm, other)
        assert torch.equal(mean[0], mean[1])
        torch.testing.assert_close(cool - mean, (warm - mean) / 2)

    def test_state_survives_initialize_and_safetensors(self, kind, shape, perturbed, normal):
        prior, latent, loaded = perturbed(HEADS[kind](shape)), normal(4, *shape), HEADS[kind](shape)
        before = prior.log_prob(latent)
        prior.initialize(3 * latent)
        loaded.load_state_dict(load(save(prior.state_dict())))
        assert torch.equal(loaded.log_prob(latent), before)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_a_normal_for_each_channel(shape, perturbed, normal):
    prior, latent = perturbed(GaussianPrior(shape), 0.5), normal(4, *shape)
    channels = [Normal(prior.mean[c], prior.log_scale[c].exp()).log_prob(latent[:, c]) for c in range(shape[0])]
    expected = sum(log_prob.reshape(4, -1).sum(dim=1) for log_prob in channels)
    torch.testing.assert_close(prior.log_prob(latent), expected)
