"""Coupling and flow step against their formulas, folded and in bfloat16."""

import pytest
import torch
from torch.nn import functional

from pipeflow.flow import Coupling
from tests.flow.formulas import coupling_net, flow_step


class TestCoupling:
    @pytest.mark.parametrize("kind", ["affine", "additive"])
    @pytest.mark.parametrize("channels", [4, 5])
    def test_affine_takes_shift_and_scale_from_even_and_odd_outputs_and_additive_only_shifts(
        self, channels, kind, perturbed, normal
    ):
        layer, x, kept = perturbed(Coupling(channels, 6, kind)), normal(2, channels, 4, 4), channels // 2
        shift, scale = coupling_net(layer.net, x[:, :kept]), torch.ones(())
        if kind == "affine":
            shift, scale = shift[:, 0::2], torch.sigmoid(shift[:, 1::2] + 2)
        y, contribution = layer(x)
        assert torch.equal(y[:, :kept], x[:, :kept])
        torch.testing.assert_close(y[:, kept:], (x[:, kept:] + shift) * scale)
        torch.testing.assert_close(contribution, scale.log().expand_as(shift).sum(dim=(1, 2, 3)))

    def test_starts_as_one_scale_for_all_with_weights_from_a_narrow_normal(self, normal):
        layer, x = Coupling(8, 256), normal(2, 8, 4, 4)
        torch.testing.assert_close(layer(x)[0][:, 4:], x[:, 4:] * torch.sigmoid(torch.tensor(2.0)))
        for conv in (layer.net.conv_in, layer.net.conv_mid):
            assert conv.weight.std().item() == pytest.approx(0.05, rel=0.05)
            assert conv.weight.mean().item() == pytest.approx(0, abs=0.002)
            assert conv.bias is None

    def test_one_channel_cannot_be_halved(self):
        with pytest.raises(ValueError, match="2 channels or more to halve, got 1"):
            Coupling(1, 4)

    @pytest.mark.parametrize("kind", ["affine", "additive"])
    def test_bfloat16_stays_inside_the_net(self, kind, perturbed, normal):
        exact, rough = perturbed(Coupling(4, 16, kind)), Coupling(4, 16, kind, torch.bfloat16)
        rough.load_state_dict(exact.state_dict())
        seen = {}
        for module in (rough.net, rough.net.conv_in, rough.net.conv_mid, rough.net.conv_out.conv):
            module.register_forward_hook(lambda module, inputs, output: seen.update({module: output.dtype}))
        x = normal(2, 4, 4, 4)
        y, contribution = rough(x)
        assert list(seen.values()) == [torch.bfloat16] * 3 + [torch.float32]
        assert y.dtype == contribution.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in rough.parameters())
        assert torch.equal(y[:, :2], x[:, :2]) and not torch.equal(y, exact(x)[0])
        torch.testing.assert_close((y, contribution), exact(x), atol=0.05, rtol=0.02)
        torch.testing.assert_close(rough.inverse(y), x, atol=1e-4, rtol=0)

    def test_float32_net_stays_float32_under_a_callers_autocast(self, perturbed, normal):
        layer, x = perturbed(Coupling(4, 16)), normal(2, 4, 4, 4)
        expected = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x)[0], expected)


class TestFlowStep:
    def test_applies_actnorm_invconv_and_coupling_in_order(self, perturbed, normal):
        step, x = perturbed(flow_step()), normal(2, 4, 4, 4)
        y, contribution = x, torch.zeros(2)
        for layer in (step.actnorm, step.invconv, step.coupling):
            y, logdet = layer(y)
            contribution = contribution + logdet
        torch.testing.assert_close(step(x), (y, contribution))

    def test_initialize_normalises_every_actnorms_outputs(self, normal):
        step, x = flow_step(width=6), normal(16, 4, 4, 4) * torch.tensor([0.1, 1.0, 3.0, 10.0])[:, None, None] + 5
        step.initialize(x)
        outputs = step.actnorm(x)[0]
        net, kept = step.coupling.net, step.invconv(outputs)[0][:, :2]
        first = net.norm_in.normalize(net.conv_in(kept))
        second = net.norm_mid.normalize(net.conv_mid(functional.relu(first)))
        for each in (outputs, first, second):
            torch.testing.assert_close(each.mean(dim=(0, 2, 3)), torch.zeros(each.shape[1]), atol=1e-4, rtol=0)
            torch.testing.assert_close(each.std(dim=(0, 2, 3)), torch.ones(each.shape[1]), atol=1e-2, rtol=0)

    @pytest.mark.parametrize("kind", ["affine", "additive"])
    @pytest.mark.parametrize("form", ["lu", "plain"])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_folded_is_the_same_but_for_rounding(self, perturbed, normal, channels, form, kind):
        """Loss and gradients agree to 1e-5 of the largest, after an initialisation that makes the ActNorms matter."""
        plain, folded = (flow_step(channels, form, kind, fold) for fold in (False, True))
        plain.initialize(3 * normal(8, channels, 4, 4) + 2)
        folded.load_state_dict(perturbed(plain).state_dict())
        found = []
        for step in (plain, folded):
            x = (3 * normal(8, channels, 4, 4, seed=1) + 2).requires_grad_()
            y, contribution = step(x)
            loss = y.square().sum() - contribution.sum()
            found.append([loss, *torch.autograd.grad(loss, [x, *step.parameters()])])
        for exact, fast in zip(*found):
            torch.testing.assert_close(fast, exact, rtol=0, atol=1e-5 * max(1.0, float(exact.detach().abs().max())))

    def test_folded_keeps_only_the_outputs_of_relus(self, normal):
        """Two tensors of the hidden size are kept, where operation by operation keeps twice as many."""
        kept = []
        for fold in (False, True):
            step = flow_step(width=64, fold=fold)
            tensors = []
            with torch.autograd.graph.saved_tensors_hooks(tensors.append, lambda tensor: tensor):
                step(normal(2, 4, 8, 8))
            kept.append(len({tensor.data_ptr() for tensor in tensors if tensor.numel() == 2 * 64 * 8 * 8}))
        assert kept == [4, 2]

    def test_bfloat16_nets_see_float32_and_folding_costs_no_accuracy(self, perturbed, normal):
        exact, x, errors = perturbed(flow_step()), normal(8, 4, 8, 8), []
        for fold in (False, True):
            rough = flow_step(dtype=torch.bfloat16, fold=fold)
            rough.load_state_dict(exact.state_dict())
            seen = []
            rough.coupling.net.register_forward_pre_hook(lambda net, args, seen=seen: seen.append(args[0].dtype))
            y, contribution = rough(x)
            assert seen == [torch.float32] and y.dtype == contribution.dtype == torch.float32
            errors.append(float((y - exact(x)[0]).detach().abs().max()))
        assert 0 < errors[1] < 2 * errors[0]
