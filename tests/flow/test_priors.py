"""Priors and heads against torch.distributions, and what an autoregressive head may see."""

import pytest
import torch
from safetensors.torch import load, save
from torch.distributions import Normal

from pipeflow.config import PartsConfig
from pipeflow.errors import ConfigError
from pipeflow.flow import ClassPrior, GaussianPrior, StandardPrior, head_maker
from pipeflow.flow.heads import HEADS, AutoregressiveHead

SHAPES = [(3, 2, 4), (5,)]
MANY_SHAPES = [*SHAPES, (2, 6), (2, 2, 3, 2)]


def make_head(kind, shape):
    return head_maker(PartsConfig(head=kind))(shape)


@pytest.mark.parametrize("shape", MANY_SHAPES)
@pytest.mark.parametrize("kind", HEADS)
class TestEveryHead:
    def test_starts_as_the_standard_normal(self, kind, shape, normal):
        latent = normal(4, *shape)
        log_prob = make_head(kind, shape).log_prob(latent)
        assert log_prob.shape == (4,) and log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, Normal(0, 1).log_prob(latent).flatten(1).sum(dim=1))

    def test_state_survives_initialize_and_safetensors(self, kind, shape, perturbed, normal):
        prior, latent, loaded = perturbed(make_head(kind, shape)), normal(4, *shape), make_head(kind, shape)
        before = prior.log_prob(latent)
        prior.initialize(3 * latent)
        loaded.load_state_dict(load(save(prior.state_dict())))
        assert torch.equal(loaded.log_prob(latent), before)

    def test_is_the_same_whatever_was_drawn_before(self, kind, shape):
        first, state = make_head(kind, shape).state_dict(), torch.get_rng_state()
        torch.rand(1)
        again = make_head(kind, shape).state_dict()
        assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
        torch.set_rng_state(state)
        expected = torch.rand(1)
        torch.set_rng_state(state)
        make_head(kind, shape)
        assert torch.equal(torch.rand(1), expected), "a head's initial values move no other's"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [GaussianPrior, StandardPrior])
class TestEveryPrior:
    def test_samples_follow_the_seed_and_the_temperature(self, kind, shape, perturbed):
        prior = perturbed(kind(shape))
        mean, cool, warm, again, other = (
            prior.sample(3, torch.Generator().manual_seed(seed), temperature)
            for seed, temperature in ((0, 0.0), (0, 0.5), (0, 1.0), (0, 1.0), (1, 1.0))
        )
        assert warm.shape == (3, *shape) and warm.dtype == torch.float32
        assert torch.equal(warm, again) and not torch.equal(warm, other)
        assert torch.equal(mean[0], mean[1])
        torch.testing.assert_close(cool - mean, (warm - mean) / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_a_normal_for_each_channel(shape, perturbed, normal):
    prior, latent = perturbed(GaussianPrior(shape), 0.5), normal(4, *shape)
    channels = [Normal(prior.mean[c], prior.log_scale[c].exp()).log_prob(latent[:, c]) for c in range(shape[0])]
    expected = sum(log_prob.reshape(4, -1).sum(dim=1) for log_prob in channels)
    torch.testing.assert_close(prior.log_prob(latent), expected)


LABELS = torch.tensor([2, 0, 1, 2])


@pytest.mark.parametrize("shape", [(3, 2, 4), (5,)])
def test_class_prior_is_a_normal_for_each_class_and_channel(shape, perturbed, normal):
    prior, latent = perturbed(ClassPrior(shape, 3), 0.5), normal(4, *shape)
    shift, stretch = prior.embedding.chunk(2, dim=1)
    for image, label in enumerate(LABELS):
        moments = prior.mean + shift[label], (prior.log_scale + stretch[label]).exp()
        expected = Normal(*(each[:, None] for each in moments)).log_prob(latent[image].reshape(shape[0], -1)).sum()
        torch.testing.assert_close(prior.log_prob(latent, LABELS)[image], expected)


def test_class_prior_starts_as_the_gaussian_one_for_every_class(normal):
    latent = normal(4, 3, 2, 4)
    prior, gaussian = ClassPrior((3, 2, 4), 3), GaussianPrior((3, 2, 4))
    for each in (prior, gaussian):
        each.mean.data.copy_(normal(3)), each.log_scale.data.copy_(normal(3, seed=1))
    torch.testing.assert_close(prior.log_prob(latent, LABELS), gaussian.log_prob(latent))


@pytest.mark.parametrize("label", [0, 1, 2])
def test_class_prior_integrates_to_one_given_each_label(label, perturbed):
    prior = perturbed(ClassPrior((2,), 3), 0.3).double()
    line = torch.linspace(-12, 12, 193, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    integral = prior.log_prob(grid, torch.full((len(grid),), label)).exp().sum() * (line[1] - line[0]) ** 2
    torch.testing.assert_close(integral, torch.ones((), dtype=torch.float64), atol=1e-3, rtol=0)


def test_samples_of_a_class_have_its_moments(perturbed):
    prior = perturbed(ClassPrior((2, 8, 8), 3), 0.5)
    labels = torch.arange(3).repeat_interleave(200)
    samples = prior.sample(600, torch.Generator().manual_seed(0), 1.0, labels)
    shift, stretch = prior.embedding.chunk(2, dim=1)
    for label, own in enumerate(samples.chunk(3)):
        torch.testing.assert_close(own.mean(dim=(0, 2, 3)), prior.mean + shift[label], atol=0.05, rtol=0)
        torch.testing.assert_close(own.std(dim=(0, 2, 3)).log(), prior.log_scale + stretch[label], atol=0.03, rtol=0)
    coldest = prior.sample(3, torch.Generator().manual_seed(0), 0.0, torch.arange(3))
    torch.testing.assert_close(coldest[:, :, 0, 0], prior.mean + shift)


DEPTHS = [0, 1, 3]


class TestAutoregressiveHead:
    @pytest.mark.parametrize("shape", [(3, 4, 5), (2, 6), (2, 2, 3, 2)])
    @pytest.mark.parametrize("depth", DEPTHS)
    def test_a_pixel_sees_those_before_it_and_no_other(self, shape, depth, perturbed, normal):
        head, latent = perturbed(AutoregressiveHead(shape, 8, depth), 0.3), normal(1, *shape).requires_grad_()
        density = head.pixel_log_prob(latent).flatten()
        for pixel, value in enumerate(density):
            (gradient,) = torch.autograd.grad(value, latent, retain_graph=True)
            seen = gradient.reshape(shape[0], -1).abs().sum(dim=0)
            assert not seen[pixel + 1 :].any(), "later pixels"
            assert seen[pixel] > 0 and (pixel == 0 or seen[:pixel].any())

    def test_a_deep_one_sees_far(self, perturbed, normal):
        head, latent = perturbed(AutoregressiveHead((2, 4, 4), 8, 3), 0.3), normal(1, 2, 4, 4).requires_grad_()
        (gradient,) = torch.autograd.grad(head.pixel_log_prob(latent)[0, 3, 3], latent)
        assert (gradient[0, :, 0].abs().sum(dim=0) > 0).any(), "the first row, from the last pixel"

    @pytest.mark.parametrize("shape", [(2,), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 2)])
    @pytest.mark.parametrize("depth", DEPTHS)
    def test_integrates_to_one(self, shape, depth, perturbed):
        head = perturbed(AutoregressiveHead(shape, 8, depth)).double()
        line = torch.linspace(-12, 12, 193, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line).reshape(-1, *shape)
        integral = head.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2
        torch.testing.assert_close(integral, torch.ones((), dtype=torch.float64), atol=1e-3, rtol=0)

    def test_is_the_gaussian_one_at_the_start(self, normal):
        shape, latent = (3, 4, 4), normal(4, 3, 4, 4)
        head, gaussian = AutoregressiveHead(shape, 8, 1), GaussianPrior(shape)
        for prior in (head, gaussian):
            prior.mean.data.copy_(normal(3)), prior.log_scale.data.copy_(normal(3, seed=1))
        torch.testing.assert_close(head.log_prob(latent), gaussian.log_prob(latent))

    @pytest.mark.parametrize("shape", [(3, 4, 4), (5,)])
    def test_learns_what_a_gaussian_for_each_channel_cannot(self, shape, normal):
        first = normal(256, *shape)
        latent = torch.cat([first[:, :1], first[:, :1] + 0.1 * first[:, 1:]], dim=1)
        losses = []
        for head in (AutoregressiveHead(shape, 16, 1), GaussianPrior(shape)):
            optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
            for _ in range(200):
                loss = -head.log_prob(latent).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[0] < losses[1] - 2 * latent[0].numel() / shape[0]

    @pytest.mark.parametrize(
        "depth, expected", [(0, 3 * 6 * 6), (1, 3 * 8 * 6 + 8 * 6 * 6), (2, 24 * 6 + 64 * 6 + 48 * 6)]
    )
    def test_multiply_adds(self, depth, expected):
        assert AutoregressiveHead((3, 4, 5), 8, depth).multiply_adds() == 20 * (9 + expected)
        assert AutoregressiveHead((7,)).multiply_adds() == 49 and GaussianPrior((3, 4, 5)).multiply_adds() == 0

    def test_a_latent_of_one_pixel_has_the_triangular_map_alone(self):
        assert AutoregressiveHead((7, 1, 1), 8, 2).multiply_adds() == 49

    def test_refuses_as_many_weights_as_would_not_fit(self):
        with pytest.raises(ConfigError, match="autoregressive has a weight for each pair of a latent's 4,097 channels"):
            head_maker(PartsConfig(head="autoregressive"))((4097,))
