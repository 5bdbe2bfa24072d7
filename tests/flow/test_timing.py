"""Times of layers, as a balanced cut takes them."""

import torch

from pipeflow.flow import Flow, Layer, cut_names
from pipeflow.flow.timing import layer_seconds

CPU = torch.device("cpu")


class Slow(Layer):
    """One parameter, and as much work as asked for: multiply-adds, counted by parameters, do not tell."""

    def __init__(self, repeats: int):
        super().__init__()
        self.repeats = repeats
        self.scale = torch.nn.Parameter(torch.eye(64))

    def forward(self, x):
        y = x
        for _ in range(self.repeats):
            y = y @ self.scale
        return y, x.new_zeros(len(x))


def test_a_timed_cut_goes_where_the_time_is_and_changes_nothing_in_the_flow():
    flow = Flow([Slow(1), Slow(1), Slow(1), Slow(200)], (64, 64))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    seconds = layer_seconds(flow, CPU, batch_size=8)
    assert len(seconds) == 4 and seconds[3] > 5 * max(seconds[:3])
    assert cut_names(flow, "balanced", 2) == ["layers.2"]
    assert cut_names(flow, "balanced", 2, seconds) == ["layers.3"]
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())
