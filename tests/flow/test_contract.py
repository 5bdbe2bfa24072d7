"""One contract for every layer; a new layer is one more entry of `LAYERS`."""

from functools import partial

import pytest
import torch
from safetensors.torch import load, save

from pipeflow.flow import ActNorm, Coupling, FactorOut, InvertibleConv1x1, Layer, Prior, Squeeze
from pipeflow.flow.counting import count_multiply_adds
from tests.flow.formulas import flow_step

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
def case(request):
    return LAYERS[request.param]


@pytest.fixture
def layer(case, perturbed):
    """One of the layers, with random parameters."""
    return perturbed(case[0]())


@pytest.fixture
def x(case, normal):
    """Inputs of that layer; height and width differ, so that mixing them up shows."""
    return normal(2, case[1], 4, 6)


assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)


def copy_of(state):
    return {name: tensor.clone() for name, tensor in state.items()}


class TestContract:
    def test_shapes_and_types_and_images_of_a_batch_do_not_mix(self, layer, x):
        y, contribution, *taken_out = layer(x)
        assert y.shape == (2, *layer.output_shape(x.shape[1:])) and y.dtype == torch.float32
        assert contribution.shape == (2,) and contribution.dtype == torch.float32
        assert len(taken_out) == layer.num_taken_out
        assert y.numel() + sum(each.numel() for each in taken_out) == x.numel()
        torch.testing.assert_close(layer(x[1:]), (y[1:], contribution[1:], *(each[1:] for each in taken_out)))

    def test_inverse_and_forward_undo_each_other(self, layer, x, normal):
        y, _, *taken_out = layer(x)
        torch.testing.assert_close(layer.inverse(y, *taken_out), x, atol=1e-4, rtol=0)
        y = normal(*y.shape, seed=1)
        taken_out = [normal(*each.shape, seed=2) for each in taken_out]
        again, _, *taken_again = layer(layer.inverse(y, *taken_out))
        torch.testing.assert_close([again, *taken_again], [y, *taken_out], atol=1e-4, rtol=0)

    def test_x_and_the_state_are_left_as_they_were(self, layer, x):
        x_before, before = x.clone(), copy_of(layer.state_dict())
        y, _, *taken_out = layer(x)
        layer.inverse(y, *taken_out)
        assert_equal(layer.state_dict(), before)
        layer.initialize(x)
        assert torch.equal(x, x_before)

    def test_logdet_is_that_of_the_jacobian(self, layer, x):
        layer, x = layer.double(), x[:1].double()

        def outputs(x):
            y, _, *taken_out = layer(x)
            return torch.cat([y, *taken_out], dim=1)

        jacobian = torch.autograd.functional.jacobian(outputs, x, vectorize=True)
        _, logdet = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel()))
        # A factor-out only moves values. Its contribution is a log-prior, tested against torch.distributions.
        expected = torch.zeros(1).double() if layer.num_taken_out else layer(x)[1].double()
        torch.testing.assert_close(expected, logdet[None], atol=1e-10, rtol=1e-10)

    def test_initialize_happens_once_even_after_a_load(self, case, layer, x, perturbed):
        """Were a flag lost on load, the first batch after it would set the weights anew."""
        layer.initialize(x)
        before = copy_of(layer.state_dict())
        layer.initialize(5 * x + 2)
        assert_equal(layer.state_dict(), before)
        loaded = perturbed(case[0](), 0.3)
        loaded.load_state_dict(load(save({name: tensor.contiguous() for name, tensor in before.items()})))
        loaded.initialize(5 * x + 2)
        assert_equal(loaded.state_dict(), before)
        assert_equal(loaded(x), layer(x))

    def test_multiply_adds_are_those_that_are_counted(self, layer, x):
        assert layer.multiply_adds(x.shape[1:]) == count_multiply_adds(layer, tuple(x.shape[1:]))

    def test_every_parameter_has_a_gradient(self, layer, x):
        y, contribution, *taken_out = layer(x.requires_grad_())
        (sum(each.square().sum() for each in (y, *taken_out)) + contribution.sum()).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())

    def test_another_number_of_channels_is_an_error(self, case, layer):
        if isinstance(layer, Squeeze):  # which takes any number of channels
            assert layer.output_shape((6, 4, 6)) == (24, 2, 3)
            return
        with pytest.raises(ValueError, match=f"{case[1]} channels"):
            layer.output_shape((2 * case[1], 4, 6))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: Layer()(x), r"Layer has no forward: .*\(y, contribution\)"),
        (lambda x: Layer().inverse(x), "Layer has no inverse"),
        (lambda x: Prior().log_prob(x), "Prior has no log_prob"),
        (lambda x: Prior().sample(1, None, 1.0), "Prior cannot be sampled"),
    ],
)
def test_a_missing_method_of_a_users_layer_or_prior_says_so(normal, call, message):
    with pytest.raises(TypeError, match=message):
        call(normal(1, 2))
