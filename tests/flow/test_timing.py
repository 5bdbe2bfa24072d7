"""Seconds of layers, which a balanced cut can take instead of multiply-adds."""

import time

import torch

from pipeflow.flow import Flow, Layer, cut_names
from pipeflow.flow.timing import layer_seconds


class Waiting(Layer):
    """A layer whose time its multiply-adds do not tell, so that it is the same on every machine."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.mix = torch.nn.Parameter(torch.eye(4))

    def forward(self, x):
        time.sleep(self.seconds)
        return x @ self.mix, x.new_zeros(len(x))


def test_a_timed_cut_goes_where_the_time_is_and_changes_nothing_in_the_flow():
    flow = Flow([Waiting(0), Waiting(0), Waiting(0), Waiting(0.05)], (4, 4))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    seconds = layer_seconds(flow, torch.device("cpu"), batch_size=8)
    assert len(seconds) == 4 and 0.05 <= seconds[3] > 3 * max(seconds[:3])
    assert cut_names(flow, "balanced", 2) == ["layers.2"]
    assert cut_names(flow, "balanced", 2, seconds) == ["layers.3"]
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())
