"""Priors and heads against torch.distributions."""

import pytest
import torch
from safetensors.torch import load, save
from torch.distributions import Normal

from pipeflow.flow import GaussianPrior, Prior, StandardPrior
from pipeflow.flow.heads import HEADS
from pipeflow.flow.priors import diagonal_gaussian_log_prob

SHAPES = [(3, 2, 4), (5,)]


def test_diagonal_gaussian_is_the_normal_log_density(normal):
    x, mean, log_scale = (normal(2, 3, 2, 4, seed=seed) for seed in range(3))
    expected = Normal(mean, log_scale.exp()).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(diagonal_gaussian_log_prob(x, mean, log_scale), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", HEADS)
class TestEveryPrior:
    def test_starts_as_the_standard_normal(self, kind, shape, normal):
        latent = normal(4, *shape)
        log_prob = HEADS[kind](shape).log_prob(latent)
        assert log_prob.shape == (4,) and log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, Normal(0, 1).log_prob(latent).flatten(1).sum(dim=1))

    def test_samples_have_the_latents_shape_and_follow_the_seed(self, kind, shape):
        prior = HEADS[kind](shape)
        draw = [prior.sample(3, torch.Generator().manual_seed(seed), 1.0) for seed in (0, 0, 1)]
        assert draw[0].shape == (3, *shape) and draw[0].dtype == torch.float32
        assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])

    def test_temperature_scales_the_distance_from_the_mean(self, kind, shape, perturbed):
        prior = perturbed(HEADS[kind](shape))
        mean, cool, warm = (prior.sample(3, torch.Generator().manual_seed(0), each) for each in (0.0, 0.5, 1.0))
        assert torch.equal(mean[0], mean[1])
        torch.testing.assert_close(cool - mean, (warm - mean) / 2)

    def test_initialize_leaves_it_alone(self, kind, shape, perturbed, normal):
        prior, latent = perturbed(HEADS[kind](shape)), normal(4, *shape)
        before = prior.log_prob(latent)
        prior.initialize(3 * latent)
        assert torch.equal(prior.log_prob(latent), before)


class TestGaussianPrior:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_log_prob_is_a_normal_for_each_channel(self, shape, perturbed, normal):
        prior, latent = perturbed(GaussianPrior(shape), 0.5), normal(4, *shape)
        expected = sum(
            Normal(prior.mean[c], prior.log_scale[c].exp()).log_prob(latent[:, c]).flatten(1).sum(dim=1)
            if latent.dim() > 2
            else Normal(prior.mean[c], prior.log_scale[c].exp()).log_prob(latent[:, c])
            for c in range(shape[0])
        )
        torch.testing.assert_close(prior.log_prob(latent), expected)

    def test_samples_have_its_moments(self, perturbed):
        prior = perturbed(GaussianPrior((3, 4, 4)), 0.5)
        samples = prior.sample(1000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(samples.mean(dim=(0, 2, 3)), prior.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(samples.std(dim=(0, 2, 3)), prior.log_scale.exp(), atol=0.03, rtol=0)

    def test_state_survives_safetensors(self, perturbed, normal):
        prior, latent = perturbed(GaussianPrior((3, 2, 2))), normal(2, 3, 2, 2)
        loaded = GaussianPrior((3, 2, 2))
        loaded.load_state_dict(load(save(prior.state_dict())))
        assert torch.equal(loaded.log_prob(latent), prior.log_prob(latent))


def test_standard_prior_learns_nothing():
    assert not list(StandardPrior((3, 2, 2)).parameters())


def test_a_prior_of_ones_own_says_what_it_lacks(normal):
    class Mine(Prior):
        pass

    with pytest.raises(TypeError, match="Mine has no log_prob"):
        Mine().log_prob(normal(1, 2))
    with pytest.raises(TypeError, match="Mine cannot be sampled"):
        Mine().sample(1, None, 1.0)
