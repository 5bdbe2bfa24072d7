"""A flow as a whole: its inverse, its density, its samples, its names and its errors."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from pipeflow.flow import ActNorm, Coupling, FactorOut, Flow, FlowStep, InvertibleConv1x1, Squeeze, StandardPrior, glow


@pytest.fixture
def small_glow(perturbed):
    """3x4x4 images, 2 blocks of 2 steps, random parameters."""
    return perturbed(glow((3, 4, 4), num_blocks=2, num_steps=2, width=6))


def moments(flow, x):
    """Mean and log-scale that the priors give each value of `latents(flow, x)`: [batch, D] each."""
    means, log_scales = [], []
    for _, layer in flow.named_layers():
        x, *_ = layer(x)
        if isinstance(layer, FactorOut):
            outputs = layer.prior(x)
            means.append(outputs[:, 0::2])
            log_scales.append(outputs[:, 1::2])
    means.append(flow.prior.mean[:, None, None].expand_as(x))
    log_scales.append(flow.prior.log_scale[:, None, None].expand_as(x))
    return tuple(torch.cat([each.flatten(1) for each in given], dim=1) for given in (means, log_scales))


def latents(flow, x):
    """All values that `forward` returns for x, [batch, D]: those taken out, then the last latent."""
    latent, _, taken_out = flow(x)
    return torch.cat([each.flatten(1) for each in (*taken_out, latent)], dim=1)


class TestForward:
    def test_types_shapes_and_inverse(self, perturbed, normal):
        flow, x = perturbed(glow((1, 16, 16), 3, 8, 8), 0.05), normal(2, 1, 16, 16)
        latent, total, taken_out = flow(x)
        assert total.dtype == torch.float64 and total.shape == (2,)
        assert latent.dtype == taken_out[0].dtype == torch.float32
        assert tuple(latent.shape[1:]) == flow.shapes[-1] == (16, 2, 2)
        assert [tuple(each.shape[1:]) for each in taken_out] == [(2, 8, 8), (4, 4, 4)]
        torch.testing.assert_close(flow.inverse(latent, taken_out), x, atol=1e-4, rtol=0)

    def test_log_prob_is_the_jacobians_logdet_and_the_priors(self, small_glow, normal):
        flow, x = small_glow.double(), normal(1, 3, 4, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: latents(flow, x), x, vectorize=True).reshape(48, 48)
        mean, log_scale = moments(flow, x)
        log_priors = Normal(mean, log_scale.exp()).log_prob(latents(flow, x)).sum(dim=1)
        expected = torch.linalg.slogdet(jacobian)[1] + log_priors
        torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize(
        "x, words",
        [
            (torch.zeros(2, 3, 4, 8), r"torch.float32 of shape \[2, 3, 4, 8\]: .* of shape \[num, 3, 4, 4\]"),
            (torch.zeros(3, 4, 4), r"of shape \[3, 4, 4\]"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"torch.uint8 .*by pipeflow\.data\.dequantize"),
        ],
    )
    def test_log_prob_of_what_are_no_images_of_the_flow(self, small_glow, x, words):
        with pytest.raises(ValueError, match=words):
            small_glow.log_prob(x)

    def test_initialize_passes_normalised_outputs_on(self, normal):
        flow, x = glow((3, 8, 8), 2, 2, 6), 0.1 * normal(16, 3, 8, 8) + 0.3
        flow.initialize(x)
        norms = [module for module in flow.modules() if isinstance(module, ActNorm)]
        assert len(norms) == 12 and all(norm.initialized for norm in norms)
        seen = []
        flow.get_submodule(flow.names[-1]).actnorm.register_forward_hook(lambda layer, args, out: seen.append(out[0]))
        flow(x)
        torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.zeros(24), atol=1e-4, rtol=0)
        torch.testing.assert_close(seen[0].std(dim=(0, 2, 3)), torch.ones(24), atol=0.02, rtol=0)


class TestSample:
    def test_temperature_zero_gives_the_means_and_global_random_numbers_stay(self, small_glow):
        """The seed decides, see test_sample.py."""
        before = torch.get_rng_state()
        images = small_glow.sample(3, torch.Generator().manual_seed(0), 0.0)
        assert torch.equal(torch.get_rng_state(), before)
        assert images.shape == (3, 3, 4, 4) and images.dtype == torch.float32 and not images.requires_grad
        torch.testing.assert_close(latents(small_glow, images), moments(small_glow, images)[0], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_latents_of_samples_are_distributed_as_the_priors(self, perturbed, temperature):
        num, small_glow = 3000, perturbed(glow((3, 4, 4), 2, 2, 6), 0.05)  # at 0.1 the tails leave float32
        images = small_glow.sample(num, torch.Generator().manual_seed(0), temperature)
        mean, log_scale = moments(small_glow, images)
        noise = ((latents(small_glow, images) - mean) / log_scale.exp() / temperature).detach()
        correlations = noise.T @ noise / num
        torch.testing.assert_close(correlations, torch.eye(48), atol=6 / math.sqrt(num), rtol=0)
        uniform = torch.special.ndtr(noise).sort(dim=0).values
        steps = (torch.arange(num) + 0.5) / num
        assert (uniform - steps[:, None]).abs().max() < 2.2 / math.sqrt(num)


class TestNames:
    def test_a_state_dict_has_the_layers_names(self, small_glow):
        names = set(small_glow.state_dict())
        assert {"blocks.0.steps.1.invconv.log_s", "blocks.1.steps.0.coupling.net.norm_in.initialized"} < names
        assert {name.split(".")[0] for name in names} == {"blocks", "prior"}
        counted = Flow([ActNorm(3), Squeeze(), InvertibleConv1x1(12)], (3, 4, 4))
        assert [type(layer) for _, layer in counted.named_layers()] == [ActNorm, Squeeze, InvertibleConv1x1]
        assert counted.names == ["layers.0", "layers.1", "layers.2"] and "layers.2.log_s" in counted.state_dict()
        top = Flow({"first": ActNorm(3), "then.second": ActNorm(3)}, (3, 4, 4))
        assert {"first.bias", "then.second.bias"} < set(top.state_dict())

    def test_prior_of_ones_own(self, normal):
        prior, x = StandardPrior((3, 4, 4)), normal(2, 3, 4, 4)
        flow = Flow([ActNorm(3)], (3, 4, 4), prior)
        assert flow.prior is prior
        torch.testing.assert_close(flow.log_prob(x), prior.log_prob(x).double())
        draw = [each.sample(5, torch.Generator().manual_seed(0), 0.5) for each in (flow, prior)]
        assert torch.equal(*draw)


NAMES_TAKEN = ["prior", "prior.0", "heads.0", "shape", "shapes.0", "names", "forward.0"]


@pytest.mark.parametrize(
    "layers, message",
    [
        ([], "at least one layer"),
        ([ActNorm(3), nn.Conv2d(3, 3, 1)], r"'layers.1' is a Conv2d: layers derive from pipeflow\.flow\.Layer"),
        ([ActNorm(3)] * 2, "a layer stands in the list twice"),
        ([Squeeze(), ActNorm(3)], r"'layers.1' cannot take .* \(12, 2, 3\): it was made for images of 3 channels"),
        ([Squeeze(), Squeeze()], r"'layers.1' cannot take .* \(12, 2, 3\): .* 2x3 does not allow"),
        ([ActNorm(3), FactorOut(3)], r"'layers.1' cannot take .* \(3, 4, 6\): .* 3 does not allow"),
        ([FlowStep(ActNorm(3), InvertibleConv1x1(3), Coupling(4, 2))], r"'layers.0' .* of 4 channels"),
        *(({name: ActNorm(3)}, f"layer '{name}': .* '{name.split('.')[0]}' are taken") for name in NAMES_TAKEN),
        ({"a": ActNorm(3), "a.b": ActNorm(3)}, "'a.b' stands inside another layer"),
        ({"a.b": ActNorm(3), "a": ActNorm(3)}, "'a'.* empty or used twice"),
        ({"a.": ActNorm(3)}, "'a.'.* empty or used twice"),
    ],
)
def test_layers_or_names_that_make_no_flow(layers, message):
    with pytest.raises(ValueError, match=message):
        Flow(layers, (3, 4, 6))
