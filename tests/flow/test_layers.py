"""ActNorm, 1x1 convolution, squeeze and factor-out against their formulas; test_contract has what all layers share."""

import pytest
import torch
from torch.distributions import Normal

from pipeflow.flow import ActNorm, FactorOut, InvertibleConv1x1, Squeeze
from tests.flow.formulas import zero_conv


class TestActNorm:
    def test_adds_the_bias_and_then_scales_with_a_factor_three(self, perturbed, normal):
        layer, x = perturbed(ActNorm(2)), normal(1, 2, 4, 4)
        expected = (x + layer.bias[:, None, None]) * torch.exp(3 * layer.log_scale)[:, None, None]
        torch.testing.assert_close(layer(x)[0], expected)

    def test_forward_does_not_read_the_flag(self, normal):
        """Reading it would make a GPU wait in every forward."""
        layer, x = ActNorm(3), normal(2, 3, 4, 4)
        del layer.initialized
        layer.inverse(layer(x)[0])


class TestInvertibleConv1x1:
    @pytest.mark.parametrize("form", ["lu", "plain"])
    def test_starts_as_a_rotation(self, form):
        matrix = InvertibleConv1x1(6, form).matrix()
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), atol=1e-5, rtol=0)
        assert (matrix - torch.eye(6)).abs().max() > 0.1

    def test_lu_is_the_product_of_its_triangular_factors_and_mixes_the_channels_of_a_pixel(self, perturbed, normal):
        """The other entries of `lower` and `upper`, which are random here, take no part."""
        layer = perturbed(InvertibleConv1x1(5))
        state = {name: tensor.double() for name, tensor in layer.state_dict().items()}
        lower = state["lower"].tril(-1) + torch.eye(5, dtype=torch.float64)
        upper = state["upper"].triu(1) + torch.diag(state["sign"] * state["log_s"].exp())
        torch.testing.assert_close(layer.matrix().double(), state["permutation"] @ lower @ upper, atol=1e-6, rtol=0)
        x = normal(1, 5, 2, 2)
        torch.testing.assert_close(layer(x)[0][0, :, 1, 0], layer.matrix() @ x[0, :, 1, 0])


class TestSqueeze:
    def test_equals_the_reshape_of_openai_glow(self, normal):
        """x = reshape(x, [-1, H/2, 2, W/2, 2, C]); transpose(x, [0, 1, 3, 5, 2, 4]), channels last."""
        x = normal(2, 3, 4, 6)
        last = x.permute(0, 2, 3, 1).reshape(2, 2, 2, 3, 2, 3).permute(0, 1, 3, 5, 2, 4).reshape(2, 2, 3, 12)
        assert torch.equal(Squeeze()(x)[0], last.permute(0, 3, 1, 2))

    def test_an_odd_height_is_an_error(self):
        """An odd width too, see test_flow.py."""
        with pytest.raises(ValueError, match="halves height and width, which 3x4"):
            Squeeze().output_shape((3, 3, 4))


class TestFactorOut:
    def test_contribution_is_the_normal_log_prob_with_interleaved_moments(self, perturbed, normal):
        layer, x = perturbed(FactorOut(6), 0.3), normal(2, 6, 4, 4)
        kept, contribution, taken_out = layer(x)
        assert torch.equal(kept, x[:, :3]) and torch.equal(taken_out, x[:, 3:])
        assert kept.is_contiguous(), "a link sends the latent as it lies in memory"
        outputs = zero_conv(layer.prior, x[:, :3])
        expected = Normal(outputs[:, 0::2], outputs[:, 1::2].exp()).log_prob(x[:, 3:]).sum(dim=(1, 2, 3))
        torch.testing.assert_close(contribution, expected)
