"""What a part keeps for its backward: everything, the layers' inputs, or its own input and output."""

import pytest
import torch

from pipeflow.errors import ConfigError
from pipeflow.flow import ActNorm, Flow, Layer, split_flow
from tests.labelled import shifted_glow


def loss_and_gradients(part, latent):
    """The loss, its gradients in the latent and the parameters, the output, and the number of values kept for them."""
    latent, sizes = latent.clone().requires_grad_(), []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = part(latent)
        loss = part.loss(output)
    gradients = torch.autograd.grad(loss, [latent, *part.parameters()], allow_unused=True, materialize_grads=True)
    return [loss.detach(), *gradients], output, sum(sizes)


def test_recomputing_gives_the_same_numbers_and_keeps_less(flow, x):
    (whole,) = split_flow(flow, [])
    (recomputing,) = split_flow(flow, [], activations="recompute")
    found, _, kept = loss_and_gradients(whole, x)
    again, _, kept_again = loss_and_gradients(recomputing, x)
    assert all(map(torch.equal, found, again)) and kept_again < kept / 2
    with torch.no_grad():
        assert torch.equal(recomputing(x).contribution, whole(x).contribution)


@pytest.mark.parametrize("cuts", [[], ["blocks.0.steps.1", "blocks.1.steps.1"]], ids=["one part", "across blocks"])
def test_inverting_gives_the_same_gradients_and_keeps_no_layer(flow, x, cuts, perturbed):
    """The memory does not grow with the layers, and the error of the recomputed input is known."""
    latent = x
    for plain, inverting in zip(split_flow(flow, cuts), split_flow(flow, cuts, activations="invert")):
        inverting.head.load_state_dict(perturbed(plain.head).state_dict())
        found, output, kept = loss_and_gradients(plain, latent)
        recovered, _, kept_inverting = loss_and_gradients(inverting, latent)
        for exact, near in zip(found, recovered):
            torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
        assert plain.reconstruction_error is None and 0 < inverting.reconstruction_error < 1e-4
        if not cuts:
            assert kept_inverting < kept / 4
        latent = plain.outgoing(output)


def test_inverting_tells_the_error_of_a_layer_that_loses_its_input(flow, x):
    """A layer that shrinks by e^-40 loses the values that its inverse should restore."""
    with torch.no_grad():
        flow.get_submodule("blocks.0.steps.0").invconv.log_s[0] = -40.0
    (whole,) = split_flow(flow, [], activations="invert")
    whole.loss(whole(x)).backward()
    assert whole.reconstruction_error > 1e-2 or whole.reconstruction_error.isnan()


def test_inverting_needs_inverses():
    class OneWay(Layer):
        def forward(self, x):
            return x, x.new_zeros(len(x))

    flow = Flow([ActNorm(3), OneWay()], (3, 4, 4))
    with pytest.raises(ConfigError, match=r"memory.activations: invert .* layer 'layers.1' \(OneWay\) has no inverse"):
        split_flow(flow, [], activations="invert")


@pytest.mark.parametrize("activations", ["recompute", "invert"])
def test_activations_that_are_not_kept_are_those_of_the_labels(perturbed, x, activations):
    flow, labels = perturbed(shifted_glow(None, (3, 8, 8))), torch.tensor([2, 0, 1, 2])
    gradients = []
    for each in ("keep", activations):
        parts = split_flow(flow, ["blocks.1.steps.1"], activations=each)
        assert [part.num_classes for part in parts] == [3, 3]
        first = parts[0](x, labels)
        second = parts[1](parts[0].outgoing(first), labels)
        total = parts[0].loss(first) + parts[1].loss(second)
        gradients.append(torch.autograd.grad(total, [*flow.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
