"""Layers and priors that take the label of each image: densities given the label, and what labels cannot be."""

import pytest
import torch

from pipeflow.errors import NoInverse
from pipeflow.flow import ClassPrior, ConditionalLayer, ConditionalPrior, Flow, glow, split_flow
from tests.labelled import ClassShift, shifted_glow

LABELS = torch.tensor([2, 0, 1, 2])


@pytest.fixture
def flow(perturbed):
    """Layers and prior take labels of three classes."""
    return perturbed(shifted_glow(None, (3, 8, 8)))


def test_a_flow_gives_each_layer_the_labels_forward_and_back(flow, x):
    latent, total, taken_out = flow(x, LABELS)
    torch.testing.assert_close(flow.inverse(latent, taken_out, LABELS), x, atol=1e-5, rtol=0)
    expected = total + flow.prior.log_prob(latent, LABELS).double()
    assert torch.equal(flow.log_prob(x, LABELS), expected)
    for image in range(4):
        alone = flow.log_prob(x[image : image + 1], LABELS[image : image + 1])[0]
        torch.testing.assert_close(alone, expected[image], atol=0, rtol=1e-5)  # its layers compute in float32
    assert (flow.log_prob(x, (LABELS + 1) % 3) - expected).abs().min() > 1e-3
    first, second = (flow.sample(4, torch.Generator().manual_seed(0), 1.0, labels) for labels in (LABELS, LABELS * 0))
    differ = (first - second).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert torch.equal(differ, LABELS > 0)


def test_a_layer_is_initialized_with_the_labels(x):
    flow = shifted_glow(None, (3, 8, 8))
    flow.initialize(x, LABELS)
    y, _ = flow.first(x, LABELS)
    for label in range(3):
        torch.testing.assert_close(y[label == LABELS].mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_only_parts_that_take_labels_need_them(perturbed, x):
    flow = perturbed(glow((3, 8, 8), 2, 2, 6, num_classes=3))
    first, last = split_flow(flow, ["blocks.1.squeeze"])
    assert (first.num_classes, last.num_classes) == (None, 3)
    output = first(x)
    with pytest.raises(ValueError, match="ClassPrior takes the label of each image, and none were given"):
        last(first.outgoing(output))
    whole = output.contribution + last(first.outgoing(output), LABELS).contribution
    assert torch.equal(whole + last(first.outgoing(output), LABELS).log_head, flow.log_prob(x, LABELS))


@pytest.mark.parametrize(
    "labels, says",
    [
        (None, "density is given the label of each image: give int64, [4], with values from 0 to 2"),
        (LABELS + 1, "3 is not one of the 3 classes"),
        (LABELS - 1, "-1 is not one of the 3 classes"),
        (LABELS[:3], "torch.int64, [3]: give int64, [4]"),
        (LABELS.float(), "torch.float32, [4]: give int64"),
        ([2, 0, 1, 2], "labels are list: give int64"),
    ],
)
def test_labels_that_cannot_be(flow, x, labels, says):
    for use in (lambda: flow.log_prob(x, labels), lambda: flow.sample(4, None, 1.0, labels)):
        with pytest.raises(ValueError) as caught:
            use()
        assert says in str(caught.value)


def test_a_flow_without_classes_takes_no_labels(x):
    plain = glow((3, 8, 8), 2, 1, 4)
    assert plain.num_classes is None
    with pytest.raises(ValueError, match="takes none"):
        plain.log_prob(x, LABELS)


def test_all_that_take_labels_are_of_one_number_of_classes():
    with pytest.raises(ValueError, match="labels of 2 and 3 classes"):
        Flow([ClassShift(3, 2)], (3, 8, 8), ClassPrior((3, 8, 8), 3))


def test_what_is_not_written_is_said(x):
    class OneWay(ConditionalLayer):
        num_classes = 3

        def forward(self, x, labels):
            return x, labels * 0.0

    class Unsampled(ConditionalPrior):
        num_classes = 3

        def log_prob(self, latent, labels):
            return labels * 0.0

    flow = Flow([OneWay()], (3, 8, 8), Unsampled())
    flow.initialize(x, LABELS)
    assert not flow.log_prob(x, LABELS).any()
    with pytest.raises(NoInverse, match="OneWay has no inverse"):
        flow.inverse(x, [], LABELS)
    with pytest.raises(NoInverse, match="Unsampled cannot be sampled"):
        flow.prior.sample(4, None, 1.0, LABELS)


def test_multiply_adds_of_a_layer_with_labels_are_counted():
    assert ClassShift(3, 3).multiply_adds((3, 8, 8)) == 0
