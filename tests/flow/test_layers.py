"""One contract for every layer, and what each layer in particular computes."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.distributions import Normal
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pipeflow.flow import ActNorm, Coupling, FactorOut, FlowStep, InvertibleConv1x1, Layer, Squeeze


def flow_step(channels, form="lu", kind="affine", fold=False):
    coupling = Coupling(channels, 5, kind, fold=fold)
    return FlowStep(ActNorm(channels), InvertibleConv1x1(channels, form), coupling, fold)


LAYERS = {
    "actnorm": (lambda: ActNorm(3), 3),
    "invconv lu": (lambda: InvertibleConv1x1(4), 4),
    "invconv plain": (lambda: InvertibleConv1x1(4, "plain"), 4),
    "coupling affine": (lambda: Coupling(4, 5), 4),
    "coupling additive": (lambda: Coupling(4, 5, "additive"), 4),
    "coupling affine, odd channels": (lambda: Coupling(5, 6), 5),
    "coupling additive, odd channels": (lambda: Coupling(3, 6, "additive"), 3),
    "flow step": (lambda: flow_step(4), 4),
    "flow step, plain, additive, odd channels": (lambda: flow_step(3, "plain", "additive"), 3),
    "flow step, folded": (lambda: flow_step(4, fold=True), 4),
    "flow step, folded, plain, additive, odd channels": (lambda: flow_step(3, "plain", "additive", True), 3),
    "squeeze": (Squeeze, 3),
    "factor-out": (lambda: FactorOut(4), 4),
}


@pytest.fixture(params=LAYERS)
def make(request):
    """Makes one of the layers anew."""
    return LAYERS[request.param][0]


@pytest.fixture
def layer(make, perturbed):
    """One of the layers, with random parameters."""
    return perturbed(make())


@pytest.fixture
def shape(request):
    """Shape of one input of that layer; height and width differ, so that mixing them up shows."""
    return (LAYERS[request.node.callspec.params["make"]][1], 4, 6)


@pytest.fixture
def x(shape, normal):
    return normal(2, *shape)


class TestContract:
    def test_output_shape_is_that_of_the_output(self, layer, shape, x):
        y, _, *taken_out = layer(x)
        assert y.shape == (2, *layer.output_shape(shape))
        assert len(taken_out) == layer.num_taken_out
        assert y.numel() + sum(each.numel() for each in taken_out) == x.numel()
        assert y.dtype == torch.float32

    def test_contribution_is_one_float32_number_an_image(self, layer, x):
        contribution = layer(x)[1]
        assert contribution.shape == (2,) and contribution.dtype == torch.float32

    def test_images_of_a_batch_do_not_mix(self, layer, x):
        y, contribution, *_ = layer(x)
        alone, contribution_alone, *_ = layer(x[1:])
        torch.testing.assert_close(alone, y[1:])
        torch.testing.assert_close(contribution_alone, contribution[1:])

    def test_inverse_undoes_forward(self, layer, x):
        y, _, *taken_out = layer(x)
        torch.testing.assert_close(layer.inverse(y, *taken_out), x, atol=1e-4, rtol=0)

    def test_forward_undoes_inverse(self, layer, x, normal):
        y, _, *taken_out = layer(x)
        y = normal(*y.shape, seed=1)
        taken_out = [normal(*each.shape, seed=2) for each in taken_out]
        again, _, *taken_again = layer(layer.inverse(y, *taken_out))
        torch.testing.assert_close([again, *taken_again], [y, *taken_out], atol=1e-4, rtol=0)

    def test_x_is_left_as_it_was(self, layer, x):
        before = x.clone()
        y, _, *taken_out = layer(x)
        layer.inverse(y, *taken_out)
        layer.initialize(x)
        assert torch.equal(x, before)

    def test_logdet_is_that_of_the_jacobian(self, layer, shape, x):
        layer, x = layer.double(), x[:1].double()

        def outputs(x):
            y, _, *taken_out = layer(x)
            return torch.cat([y, *taken_out], dim=1)

        jacobian = torch.autograd.functional.jacobian(outputs, x, vectorize=True)
        _, logdet = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel()))
        # A factor-out moves values only; what it contributes is a log-prior, held against torch.distributions below.
        expected = torch.zeros(1).double() if layer.num_taken_out else layer(x)[1].double()
        torch.testing.assert_close(expected, logdet[None], atol=1e-10, rtol=1e-10)

    def test_state_survives_safetensors(self, make, layer, x, perturbed):
        layer.initialize(x)
        saved = save({name: tensor.contiguous() for name, tensor in layer.state_dict().items()})
        loaded = perturbed(make(), 0.3)
        loaded.load_state_dict(load(saved))
        torch.testing.assert_close(loaded(x), layer(x), atol=0, rtol=0)

    def test_initialize_happens_once(self, layer, x):
        layer.initialize(x)
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        layer.initialize(5 * x + 2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())

    def test_no_initialisation_after_a_load(self, make, layer, x):
        """The trap: a flag lost on load, and the first test batch sets the weights anew."""
        layer.initialize(x)
        loaded = make()
        loaded.load_state_dict(load(save({name: each.contiguous() for name, each in layer.state_dict().items()})))
        loaded.initialize(5 * x + 2)
        assert all(torch.equal(tensor, layer.state_dict()[name]) for name, tensor in loaded.state_dict().items())

    def test_forward_and_inverse_change_no_state(self, make, x):
        layer = make()
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        y, _, *taken_out = layer(x)
        layer.inverse(y, *taken_out)
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())

    def test_multiply_adds_are_those_of_the_convolutions(self, layer, shape, x):
        with FlopCounterMode(display=False) as counter:
            layer(x[:1])
        flops = counter.get_flop_counts().get("Global", {}).get(torch.ops.aten.convolution, 0)
        assert layer.multiply_adds(shape) == flops / 2

    def test_every_parameter_has_a_gradient(self, layer, x):
        y, contribution, *taken_out = layer(x.requires_grad_())
        (sum(each.square().sum() for each in (y, *taken_out)) + contribution.sum()).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())

    def test_another_number_of_channels_is_an_error(self, layer, shape):
        wide = (2 * shape[0], *shape[1:])
        if isinstance(layer, Squeeze):  # which takes any number of channels
            assert layer.output_shape(wide)[0] == 4 * wide[0]
            return
        with pytest.raises(ValueError, match=f"{shape[0]} channels"):
            layer.output_shape(wide)


class TestLayer:
    """The base that a layer of one's own derives from."""

    def test_what_is_not_written_says_so(self, normal):
        class Half(Layer):
            pass

        with pytest.raises(TypeError, match=r"Half has no forward: .*\(y, contribution\)"):
            Half()(normal(1, 2))
        with pytest.raises(TypeError, match="Half has no inverse"):
            Half().inverse(normal(1, 2))

    def test_defaults_are_those_of_a_dense_layer(self, normal):
        class Dense(Layer):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(3, 3)

            def inverse(self, y):
                return -y

        y = normal(2, 3)
        assert Dense().output_shape((3,)) == (3,)
        assert Dense().multiply_adds((3,)) == 12
        assert torch.equal(Dense().sample_inverse(y, None, 0.5), -y)
        Dense().initialize(y)


class TestActNorm:
    def test_initialized_outputs_have_zero_mean_and_unit_variance(self, normal):
        layer = ActNorm(3)
        x = normal(8, 3, 4, 4) * torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1, 1) + 5
        layer.initialize(x)
        y, _ = layer(x)
        torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(y.var(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)
        assert layer.initialized

    def test_starts_as_the_identity(self, normal):
        x = normal(2, 3, 4, 4)
        y, contribution = ActNorm(3)(x)
        assert torch.equal(y, x) and torch.equal(contribution, torch.zeros(2))

    def test_is_bias_then_scale_with_a_factor_three(self, perturbed, normal):
        layer, x = perturbed(ActNorm(2)), normal(1, 2, 4, 4)
        for channel in range(2):
            expected = (x[:, channel] + layer.bias[channel]) * torch.exp(3 * layer.log_scale[channel])
            torch.testing.assert_close(layer(x)[0][:, channel], expected)

    def test_flag_travels_in_the_state_dict(self, normal):
        layer = ActNorm(3)
        assert not layer.state_dict()["initialized"]
        layer.initialize(normal(4, 3, 2, 2))
        loaded = ActNorm(3)
        loaded.load_state_dict(load(save(layer.state_dict())))
        assert loaded.initialized and loaded.initialized.dtype == torch.bool

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

    def test_lu_is_the_product_of_its_factors(self, perturbed):
        layer = perturbed(InvertibleConv1x1(5))
        state = {name: tensor.double() for name, tensor in layer.state_dict().items()}
        lower = state["lower"].tril(-1) + torch.eye(5, dtype=torch.float64)
        upper = state["upper"].triu(1) + torch.diag(state["sign"] * state["log_s"].exp())
        torch.testing.assert_close(layer.matrix().double(), state["permutation"] @ lower @ upper, atol=1e-6, rtol=0)

    def test_lu_equals_its_plain_matrix(self, perturbed, normal):
        lu, plain, x = perturbed(InvertibleConv1x1(5)), InvertibleConv1x1(5, "plain"), normal(2, 5, 3, 4)
        with torch.no_grad():
            plain.weight.copy_(lu.matrix())
        torch.testing.assert_close(lu(x), plain(x), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(lu.inverse(x), plain.inverse(x), atol=1e-4, rtol=1e-5)

    def test_lu_logdet_is_the_sum_of_log_s(self, perturbed, normal):
        layer = perturbed(InvertibleConv1x1(5))
        assert torch.equal(layer(normal(2, 5, 3, 4))[1], (12 * layer.log_s.sum()).expand(2))

    def test_mixes_the_channels_of_each_pixel(self, perturbed, normal):
        layer, x = perturbed(InvertibleConv1x1(3)), normal(1, 3, 2, 2)
        torch.testing.assert_close(layer(x)[0][0, :, 1, 0], layer.matrix() @ x[0, :, 1, 0])

    def test_masked_entries_stay_out(self, normal):
        layer, x = InvertibleConv1x1(4), normal(1, 4, 2, 2)
        before = layer(x)[0]
        with torch.no_grad():
            layer.lower += torch.ones(4, 4).triu()
            layer.upper += torch.ones(4, 4).tril()
        assert torch.equal(layer(x)[0], before)


def zero_conv(module, x):
    """What a zero convolution computes, from its parameters."""
    outputs = functional.conv2d(x, module.conv.weight, module.conv.bias, padding=1)
    return outputs * torch.exp(3 * module.log_scale)[None, :, None, None]


def coupling_net(net, x):
    """What openai/glow's coupling net computes, from the parameters."""
    for conv, norm in ((net.conv_in, net.norm_in), (net.conv_mid, net.norm_mid)):
        x = functional.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2)
        x = functional.relu((x + norm.bias[None, :, None, None]) * torch.exp(3 * norm.log_scale)[None, :, None, None])
    return zero_conv(net.conv_out, x)


class TestCoupling:
    @pytest.mark.parametrize("channels", [4, 5])
    def test_affine_takes_shift_and_scale_from_even_and_odd_outputs(self, channels, perturbed, normal):
        layer, x = perturbed(Coupling(channels, 6)), normal(2, channels, 4, 4)
        y, contribution = layer(x)
        kept = channels // 2
        outputs = coupling_net(layer.net, x[:, :kept])
        assert torch.equal(y[:, :kept], x[:, :kept])
        logdet = torch.zeros(2)
        for index in range(channels - kept):
            shift, scale = outputs[:, 2 * index], torch.sigmoid(outputs[:, 2 * index + 1] + 2)
            torch.testing.assert_close(y[:, kept + index], (x[:, kept + index] + shift) * scale)
            logdet = logdet + scale.log().sum(dim=(1, 2))
        torch.testing.assert_close(contribution, logdet)

    @pytest.mark.parametrize("channels", [4, 5])
    def test_additive_only_shifts(self, channels, perturbed, normal):
        layer, x = perturbed(Coupling(channels, 6, "additive")), normal(2, channels, 4, 4)
        y, contribution = layer(x)
        kept = channels // 2
        torch.testing.assert_close(y[:, kept:], x[:, kept:] + coupling_net(layer.net, x[:, :kept]))
        assert torch.equal(contribution, torch.zeros(2))

    def test_starts_as_one_scale_for_all(self, normal):
        layer, x = Coupling(4, 6), normal(2, 4, 4, 4)
        torch.testing.assert_close(layer(x)[0][:, 2:], x[:, 2:] * torch.sigmoid(torch.tensor(2.0)))

    def test_weights_start_from_a_narrow_normal(self):
        net = Coupling(8, 256).net
        for conv in (net.conv_in, net.conv_mid):
            assert conv.weight.std().item() == pytest.approx(0.05, rel=0.05)
            assert conv.weight.mean().item() == pytest.approx(0, abs=0.002)
            assert conv.bias is None

    def test_initialize_normalises_both_hidden_layers(self, normal):
        layer, x = Coupling(4, 6), 3 * normal(16, 4, 4, 4) + 1
        layer.initialize(x)
        net = layer.net
        first = net.norm_in.normalize(net.conv_in(x[:, :2]))
        second = net.norm_mid.normalize(net.conv_mid(functional.relu(first)))
        for hidden in (first, second):
            torch.testing.assert_close(hidden.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
            torch.testing.assert_close(hidden.std(dim=(0, 2, 3)), torch.ones(6), atol=1e-2, rtol=0)

    def test_one_channel_cannot_be_halved(self):
        with pytest.raises(ValueError, match="2 channels or more to halve, got 1"):
            Coupling(1, 4)

    @pytest.mark.parametrize("kind", ["affine", "additive"])
    def test_bfloat16_stays_inside_the_net(self, kind, perturbed, normal):
        exact = perturbed(Coupling(4, 16, kind))
        rough = Coupling(4, 16, kind, torch.bfloat16)
        rough.load_state_dict(exact.state_dict())
        seen = {}
        for module in (rough.net, rough.net.conv_in, rough.net.conv_mid, rough.net.conv_out.conv):
            module.register_forward_hook(lambda module, inputs, output: seen.update({module: output.dtype}))
        x = normal(2, 4, 4, 4)
        y, contribution = rough(x)
        assert list(seen.values()) == [torch.bfloat16] * 3 + [torch.float32]
        assert y.dtype == contribution.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in rough.parameters())
        assert torch.equal(y[:, :2], x[:, :2])
        assert not torch.equal(y, exact(x)[0])
        torch.testing.assert_close((y, contribution), exact(x), atol=0.05, rtol=0.02)
        torch.testing.assert_close(rough.inverse(y), x, atol=1e-4, rtol=0)

    def test_float32_net_stays_float32_under_a_callers_autocast(self, perturbed, normal):
        layer, x = perturbed(Coupling(4, 16)), normal(2, 4, 4, 4)
        expected = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x)[0], expected)


class TestFlowStep:
    def test_is_actnorm_then_invconv_then_coupling(self, perturbed, normal):
        step, x = perturbed(flow_step(4)), normal(2, 4, 4, 4)
        y, contribution = x, torch.zeros(2)
        for layer in (step.actnorm, step.invconv, step.coupling):
            y, logdet = layer(y)
            contribution = contribution + logdet
        torch.testing.assert_close(step(x), (y, contribution))

    @pytest.mark.parametrize("kind", ["affine", "additive"])
    @pytest.mark.parametrize("form", ["lu", "plain"])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_folded_is_the_same_but_for_rounding(self, perturbed, normal, channels, form, kind):
        """Loss and gradients to 1e-5 of the largest, after an initialisation that makes the ActNorms work."""
        plain, folded = flow_step(channels, form, kind), flow_step(channels, form, kind, fold=True)
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

    def test_folded_keeps_what_relus_give_and_little_else(self, normal):
        """Of tensors as large as the hidden ones: two, where operation by operation keeps twice as many."""
        kept = []
        for fold in (False, True):
            step = FlowStep(ActNorm(4), InvertibleConv1x1(4), Coupling(4, 64, fold=fold), fold)
            storages = {}

            def keep(tensor, storages=storages):
                storages[tensor.untyped_storage()._cdata] = tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = step(normal(2, 4, 8, 8))
            kept.append(sum(tensor.numel() == 2 * 64 * 8 * 8 for tensor in storages.values()))
            del output
        assert kept == [4, 2]

    def test_folded_bfloat16_is_as_near_as_bfloat16_is(self, perturbed, normal):
        exact, x = perturbed(flow_step(4)), normal(8, 4, 8, 8)
        errors = []
        for fold in (False, True):
            rough = FlowStep(
                ActNorm(4), InvertibleConv1x1(4), Coupling(4, 5, net_dtype=torch.bfloat16, fold=fold), fold
            )
            rough.load_state_dict(exact.state_dict())
            y, contribution = rough(x)
            assert y.dtype == contribution.dtype == torch.float32
            errors.append(float((y - exact(x)[0]).detach().abs().max()))
        assert 0 < errors[1] < 2 * errors[0]

    def test_bfloat16_nets_see_float32(self, perturbed, normal):
        exact = perturbed(flow_step(4))
        rough = FlowStep(ActNorm(4), InvertibleConv1x1(4), Coupling(4, 5, net_dtype=torch.bfloat16))
        rough.load_state_dict(exact.state_dict())
        inputs = []
        for step in (exact, rough):
            step.coupling.net.register_forward_pre_hook(lambda net, args: inputs.append(args[0]))
            step(normal(2, 4, 4, 4))
        assert torch.equal(*inputs) and inputs[1].dtype == torch.float32

    def test_initialize_normalises_what_arrives_at_each(self, normal):
        step, x = flow_step(4), 3 * normal(16, 4, 4, 4) + 1
        step.initialize(x)
        y = step.actnorm(x)[0]
        torch.testing.assert_close(y.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
        coupling = Coupling(4, 5)
        coupling.net.conv_in.load_state_dict(step.coupling.net.conv_in.state_dict())
        coupling.net.conv_mid.load_state_dict(step.coupling.net.conv_mid.state_dict())
        coupling.initialize(step.invconv(y)[0])
        assert torch.equal(step.coupling.net.norm_mid.log_scale, coupling.net.norm_mid.log_scale)


class TestSqueeze:
    def test_channels_are_in_the_order_of_openai_glow(self):
        x = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
        y = Squeeze()(x)[0]
        for c in range(3):
            for dy in range(2):
                for dx in range(2):
                    assert torch.equal(y[:, c * 4 + dy * 2 + dx], x[:, c, dy::2, dx::2])

    def test_equals_the_reshape_of_openai_glow(self, normal):
        """x = reshape(x, [-1, H/2, 2, W/2, 2, C]); transpose(x, [0, 1, 3, 5, 2, 4]), channels last."""
        x = normal(2, 3, 4, 6)
        last = x.permute(0, 2, 3, 1).reshape(2, 2, 2, 3, 2, 3).permute(0, 1, 3, 5, 2, 4).reshape(2, 2, 3, 12)
        assert torch.equal(Squeeze()(x)[0], last.permute(0, 3, 1, 2))

    def test_contributes_nothing(self, normal):
        assert torch.equal(Squeeze()(normal(2, 3, 4, 4))[1], torch.zeros(2))

    @pytest.mark.parametrize("size", [(3, 4), (4, 3)])
    def test_odd_sizes_are_an_error(self, size):
        with pytest.raises(ValueError, match=f"halves height and width, which {size[0]}x{size[1]}"):
            Squeeze().output_shape((3, *size))


class TestFactorOut:
    def test_contribution_is_the_normal_log_prob_with_interleaved_moments(self, perturbed, normal):
        layer, x = perturbed(FactorOut(6), 0.3), normal(2, 6, 4, 4)
        kept, contribution, taken_out = layer(x)
        assert torch.equal(kept, x[:, :3]) and torch.equal(taken_out, x[:, 3:])
        outputs, expected = zero_conv(layer.prior, x[:, :3]), torch.zeros(2)
        for index in range(3):
            prior = Normal(outputs[:, 2 * index], outputs[:, 2 * index + 1].exp())
            expected = expected + prior.log_prob(x[:, 3 + index]).sum(dim=(1, 2))
        torch.testing.assert_close(contribution, expected)

    def test_starts_as_a_standard_normal(self, normal):
        x = normal(2, 4, 4, 4)
        expected = Normal(0, 1).log_prob(x[:, 2:]).sum(dim=(1, 2, 3))
        torch.testing.assert_close(FactorOut(4)(x)[1], expected)

    def test_inverse_samples_what_is_not_given(self, perturbed, normal):
        layer, kept = perturbed(FactorOut(4), 0.3), normal(500, 2, 4, 4)
        sample = layer.inverse(kept, generator=torch.Generator().manual_seed(3), temperature=0.5)
        again = layer.sample_inverse(kept, torch.Generator().manual_seed(3), 0.5)
        assert torch.equal(sample, again) and torch.equal(sample[:, :2], kept)
        outputs = zero_conv(layer.prior, kept)
        noise = (sample[:, 2:] - outputs[:, 0::2]) / outputs[:, 1::2].exp()
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(0.5, abs=0.02)

    def test_temperature_zero_is_the_mean(self, perturbed, normal):
        layer, kept = perturbed(FactorOut(4), 0.3), normal(2, 2, 4, 4)
        sample = layer.sample_inverse(kept, None, 0.0)
        torch.testing.assert_close(sample[:, 2:], zero_conv(layer.prior, kept)[:, 0::2])

    def test_odd_channels_are_an_error(self):
        with pytest.raises(ValueError, match="halves the channels, which 3 does not allow"):
            FactorOut(3).output_shape((3, 4, 4))

    def test_what_is_kept_is_laid_out_as_it_travels(self, normal):
        """A link sends the latent as it lies in memory."""
        assert FactorOut(4)(normal(2, 4, 4, 4))[0].is_contiguous()
