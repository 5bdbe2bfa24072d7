"""The flow for rows of a table, and the tables that come along."""

import pytest
import torch

from pipeflow.config import Config, DataConfig
from pipeflow.data.toys import NUM_TEST, NUM_TRAIN, two_moons, weather
from pipeflow.errors import ConfigError
from pipeflow.flow import build_flow
from pipeflow.flow.counting import count_multiply_adds
from pipeflow.flow.dense import DenseStep

DENSE = {"model": {"name": "pipeflow.flow.dense:dense", "num_blocks": 2, "num_steps": 2, "width": 8}}


@pytest.mark.parametrize("num_values", [2, 5])
def test_a_step_keeps_the_contract_of_layers(num_values, perturbed, normal):
    step, rows = DenseStep(num_values, 6), 1000 * normal(64, num_values) + 300
    step.initialize(rows)
    y, _ = step(rows)
    assert y.mean(dim=0).abs().max() < 1e-4 and (y.std(dim=0) - 1).abs().max() < 1e-2  # whatever the units
    before = {name: value.clone() for name, value in step.state_dict().items()}
    step.initialize(7 * rows)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())
    perturbed(step).double()
    row = normal(1, num_values).double()
    y, logdet = step(row)
    torch.testing.assert_close(step.inverse(y), row)
    jacobian = torch.autograd.functional.jacobian(lambda x: step(x)[0], row).reshape(num_values, num_values)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(jacobian)[1][None])
    assert step.multiply_adds((num_values,)) == count_multiply_adds(step.float(), (num_values,))


def test_a_configuration_builds_it_in_blocks():
    flow = build_flow(Config.from_dict(DENSE), (3,))
    assert flow.names == ["blocks.0.steps.0", "blocks.0.steps.1", "blocks.1.steps.0", "blocks.1.steps.1"]
    for shape in [(1,), (3, 8, 8)]:
        with pytest.raises(ConfigError, match=r"takes rows of two values or more, but the data have the shape \["):
            build_flow(Config.from_dict(DENSE), shape)


@pytest.mark.parametrize("make, num_values", [(two_moons, 2), (weather, 5)])
def test_tables_are_floats_and_the_same_each_time(make, num_values):
    data, again = make(DataConfig()), make(DataConfig())
    assert data.train.dtype == torch.float32 and data.fingerprint == again.fingerprint
    assert (len(data.train), len(data.test), data.shape) == (NUM_TRAIN, NUM_TEST, (num_values,))
    correlation = torch.corrcoef(data.train.T) - torch.eye(num_values)
    assert correlation.abs().max() > 0.3  # there is something to learn
