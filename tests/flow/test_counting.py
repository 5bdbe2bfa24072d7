"""Multiply-adds of layers of one's own are counted, whatever the layers are like inside."""

import pytest
import torch
from torch import nn

from pipeflow.errors import ConfigError
from pipeflow.flow import Flow, Layer, cut_names


class ConvCoupling(Layer):
    """A coupling of RealNVP as people write it: a mask that is no buffer, weight norm of the old kind, a batch norm."""

    def __init__(self, width: int):
        super().__init__()
        self.mask = torch.arange(2).view(2, 1, 1) * 1.0
        first = nn.utils.weight_norm(nn.Conv2d(2, width, 3, padding=1))
        self.net = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, x):
        return x + (1 - self.mask) * self.net(self.mask * x), x.new_zeros(len(x))


class Looking(Layer):
    """Looks at a value, draws a number, and changes its own state: nothing of which a count may leave behind."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4, bias=False)
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        shift = 0.0 if x.abs().max().item() > 9 else torch.randn(())
        return self.mix(x) + shift, x.new_zeros(len(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_convolution_counts_for_each_pixel():
    own = Flow([ConvCoupling(4), ConvCoupling(4), ConvCoupling(40)], (2, 8, 6))
    per_pixel = 2 * 9 + 2  # for each channel inside
    assert own.layer_multiply_adds() == [4 * per_pixel * 48, 4 * per_pixel * 48, 40 * per_pixel * 48]
    assert cut_names(own, "balanced", 2) == ["layers.2"]


def test_a_layer_that_looks_at_values_is_counted_and_left_as_it_was():
    layer, before = Looking(), torch.get_rng_state()
    assert layer.multiply_adds((4,)) == 16 == layer.multiply_adds((4,))
    assert layer.multiply_adds((3, 4)) == 48
    assert layer.num_calls == 0 and torch.equal(torch.get_rng_state(), before)


def test_it_is_counted_once(monkeypatch):
    layer = Looking()
    layer.multiply_adds((4,))
    monkeypatch.setattr(Looking, "forward", None)
    assert layer.multiply_adds((4,)) == 16


def test_a_layer_that_cannot_be_run_is_an_error_that_says_what_to_write():
    class Picky(Looking):
        def forward(self, x):
            raise ValueError("not such images")

    with pytest.raises(
        ConfigError, match=r"Picky.*\[3, 4\].*ValueError: not such images.*multiply_adds\(self, shape\)"
    ):
        Picky().multiply_adds((4,))


def test_a_layer_may_say_better():
    class Sparse(Looking):
        def multiply_adds(self, shape):
            return 7

    assert Flow([Sparse(), Looking()], (4,)).layer_multiply_adds() == [7, 16]
