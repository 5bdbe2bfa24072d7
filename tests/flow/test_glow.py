"""Glow as it was published, and the flow that a configuration asks for."""

import sys

import pytest
import torch
from torch._dynamo.utils import counters as dynamo_stats

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow import Coupling, Flow, build_flow, glow, split_flow

SHAPE = (3, 8, 8)


def config(**sections) -> Config:
    small = {"model": {"num_blocks": 2, "num_steps": 2, "width": 4}, "parts": {"split": "balanced", "num": 2}}
    return Config.from_dict({**small, **sections})


def loss_and_gradients(**sections) -> list[torch.Tensor]:
    """Of the whole flow, initialised on a batch and with random parameters, on another batch."""
    flow = build_flow(config(**sections), SHAPE)
    generator = torch.Generator().manual_seed(1)
    flow.initialize(torch.rand(16, *SHAPE, generator=generator) - 0.5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    (whole,) = split_flow(flow, [])
    loss = whole.loss(whole(torch.rand(16, *SHAPE, generator=generator) - 0.5))
    return [loss, *torch.autograd.grad(loss, list(whole.parameters()))]


def assert_agrees(found: list[torch.Tensor], reference: list[torch.Tensor]) -> None:
    """To 1e-5 in the loss, and in the gradient relative to its norm."""
    torch.testing.assert_close(found[0], reference[0], rtol=1e-5, atol=0)
    assert not torch.equal(found[0], reference[0]), "this was the reference itself"
    norm = torch.stack([each.norm() for each in reference[1:]]).norm()
    apart = torch.stack([(ours - theirs).norm() for ours, theirs in zip(found[1:], reference[1:])]).norm()
    assert apart < 1e-5 * norm


@pytest.fixture(scope="module")
def published() -> Flow:
    with torch.random.fork_rng():
        return glow((3, 32, 32))


class TestGlow:
    def test_published_model_has_44_million_parameters(self, published):
        assert sum(parameter.numel() for parameter in published.parameters()) == pytest.approx(44e6, rel=0.01)

    def test_published_cost_of_each_block(self, published):
        costs = [0, 0, 0]
        for (name, layer), shape in zip(published.named_layers(), published.shapes):
            costs[int(name.split(".")[1])] += layer.multiply_adds(shape)
        assert [cost / 1e9 for cost in costs] == pytest.approx([2.83, 0.88, 0.30], rel=0.02)
        assert published.multiply_adds() == sum(costs)

    def test_published_shapes(self, published):
        assert len(published.names) == 3 * 33 + 2
        assert published.shapes[-1] == (48, 4, 4)
        assert published.shapes[published.names.index("blocks.1.squeeze")] == (6, 16, 16)
        assert published.shapes[published.names.index("blocks.2.steps.0")] == (48, 4, 4)

    def test_names_in_order(self):
        assert glow(SHAPE, 2, 2, 4).names == [
            "blocks.0.squeeze", "blocks.0.steps.0", "blocks.0.steps.1", "blocks.0.factor_out",
            "blocks.1.squeeze", "blocks.1.steps.0", "blocks.1.steps.1",
        ]  # fmt: skip

    def test_size_that_cannot_be_halved(self):
        with pytest.raises(ValueError, match=r"'blocks.1.squeeze' cannot take .* \(6, 3, 4\)"):
            glow((3, 6, 8), 2, 2, 4)

    def test_any_number_of_image_channels(self, normal):
        for channels in (1, 2, 5):
            assert glow((channels, 4, 4), 2, 1, 4).log_prob(normal(2, channels, 4, 4)).shape == (2,)

    def test_untrained_bits_per_dim_are_those_of_its_priors(self, normal):
        """Each coupling starts as one scale for half of the values, so the density at the start is known."""
        flow, x = glow(SHAPE, 2, 2, 4, coupling="additive"), 0.1 * normal(4, *SHAPE)
        latent, _, taken_out = flow(x)
        values = torch.cat([latent.flatten(1), *(each.flatten(1) for each in taken_out)], dim=1)
        expected = torch.distributions.Normal(0, 1).log_prob(x).flatten(1).sum(dim=1).double()
        torch.testing.assert_close(values.square().sum(dim=1), x.square().flatten(1).sum(dim=1))
        torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-3, rtol=0)


class TestBuildFlow:
    def test_options_reach_the_model(self):
        flow = build_flow(config(model={"num_blocks": 1, "num_steps": 3, "width": 7}), SHAPE)
        assert flow.names == ["blocks.0.squeeze", *(f"blocks.0.steps.{step}" for step in range(3))]
        assert flow.state_dict()["blocks.0.steps.2.coupling.net.conv_mid.weight"].shape == (7, 7, 1, 1)
        flow = build_flow(config(model={"num_blocks": 1, "coupling": "additive", "invconv": "plain"}), SHAPE)
        assert "blocks.0.steps.0.invconv.weight" in flow.state_dict()
        assert flow.state_dict()["blocks.0.steps.0.coupling.net.conv_out.conv.bias"].shape == (6,)

    def test_values_come_from_the_seed_alone(self):
        torch.manual_seed(7)
        one = build_flow(config(run={"seed": 3}), SHAPE).state_dict()
        torch.manual_seed(8)
        two = build_flow(config(run={"seed": 3}), SHAPE).state_dict()
        other = build_flow(config(run={"seed": 4}), SHAPE).state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not torch.equal(one["blocks.0.steps.0.invconv.lower"], other["blocks.0.steps.0.invconv.lower"])

    def test_global_random_numbers_stay_as_they_were(self):
        before = torch.get_rng_state()
        build_flow(config(), SHAPE)
        assert torch.equal(torch.get_rng_state(), before)

    def test_bfloat16_reaches_the_coupling_nets_only(self, normal):
        exact = build_flow(config(), SHAPE)
        rough = build_flow(config(precision={"coupling": "bfloat16"}), SHAPE)
        assert all(m.net.dtype == torch.bfloat16 for m in rough.modules() if isinstance(m, Coupling))
        assert all(parameter.dtype == torch.float32 for parameter in rough.parameters())
        with torch.no_grad():
            for flow in (exact, rough):
                torch.manual_seed(1)
                for parameter in flow.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        x = normal(4, *SHAPE)
        assert rough(x)[0].dtype == torch.float32 and rough(x)[1].dtype == torch.float64
        exact, rough = exact.log_prob(x), rough.log_prob(x)
        assert not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, atol=0, rtol=0.01)

    def test_compile_changes_no_name(self):
        flow = build_flow(config(precision={"compile": True}), SHAPE)
        assert list(flow.state_dict()) == list(build_flow(config(), SHAPE).state_dict())

    def test_fast_is_the_reference_but_for_rounding(self):
        assert_agrees(
            loss_and_gradients(precision={"step": "fast"}), loss_and_gradients(precision={"step": "reference"})
        )

    def test_a_compiled_step_agrees_and_is_compiled_once_for_all_of_a_block(self):
        """That is: without gradients, with them, and for the first, whose input needs none."""
        model = {"num_blocks": 1, "num_steps": 5}
        dynamo_stats.clear()
        compiled = loss_and_gradients(model=model, precision={"compile": True})
        assert dynamo_stats["stats"]["unique_graphs"] == 3
        assert_agrees(compiled, loss_and_gradients(model=model, precision={"step": "reference"}))

    @pytest.mark.parametrize("shape", [(3, 6, 8), (3, 8, 6), (3,)])
    def test_images_that_do_not_fit(self, shape):
        with pytest.raises(ConfigError, match=r"model\.num_blocks: 2 blocks .* multiples of 4"):
            build_flow(config(), shape)


OWN = """
import torch
from torch import nn
from pipeflow.flow import ActNorm, Flow, FlowStep, Squeeze, glow

calls = []

def layers(config, shape):
    calls.append((config, shape))
    flow = [Squeeze(), ActNorm(4 * shape[0])]
    flow[1].bias = nn.Parameter(torch.randn(4 * shape[0]))
    return flow

def named(config, shape):
    return {"body.first": ActNorm(shape[0]), "body.second": ActNorm(shape[0])}

def whole(config, shape):
    return glow(shape, 1, 1, 4)

def nothing(config, shape):
    pass

def wrong_module(config, shape):
    return nn.Linear(3, 3)

def no_layer(config, shape):
    return [ActNorm(shape[0]), nn.Conv2d(3, 3, 1)]

def misfit(config, shape):
    return [Squeeze(), ActNorm(shape[0])]

def other_images(config, shape):
    return glow((shape[0], 16, 16), 1, 1, 4)

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """The current directory holds a module of the user's; gives its name, another one for each test."""
    name = f"own_flow_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


class TestOwnFlow:
    def test_list_of_layers(self, own):
        asked = config(model={"name": f"{own}:layers"})
        flow = build_flow(asked, SHAPE)
        assert flow.names == ["layers.0", "layers.1"] and flow.shape == SHAPE
        assert sys.modules[own].calls == [(asked, SHAPE)]

    def test_named_layers_and_whole_flows(self, own):
        assert build_flow(config(model={"name": f"{own}:named"}), SHAPE).names == ["body.first", "body.second"]
        assert build_flow(config(model={"name": f"{own}:whole"}), SHAPE).names[0] == "blocks.0.squeeze"

    def test_values_come_from_the_seed_alone(self, own):
        def bias(seed):
            asked = config(model={"name": f"{own}:layers"}, run={"seed": seed})
            return build_flow(asked, SHAPE).state_dict()["layers.1.bias"]

        before = torch.get_rng_state()
        one = bias(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(9)
        assert torch.equal(bias(3), one) and not torch.equal(bias(4), one)

    @pytest.mark.parametrize(
        "function, message",
        [
            ("missing", "has no function 'missing'"),
            ("number", "has no function 'number'"),
            ("nothing", "returned a NoneType: return a list of layers or a Flow"),
            ("wrong_module", "returned a Linear: return a list of layers or a Flow"),
            ("no_layer", "layer 'layers.1' is a Conv2d"),
            ("misfit", r"layer 'layers.1' cannot take a latent of shape \(12, 4, 4\)"),
            ("other_images", r"for images of shape \(3, 16, 16\), but the data has \(3, 8, 8\)"),
        ],
    )
    def test_errors_name_the_option_and_what_is_wrong(self, own, function, message):
        with pytest.raises(ConfigError, match=rf"^model\.name: {own}:{function}.*{message}"):
            build_flow(config(model={"name": f"{own}:{function}"}), SHAPE)

    def test_module_that_is_not_there(self, own):
        with pytest.raises(ConfigError, match=r"^model\.name: no_such_module:f: there is no module 'no_such_module'"):
            build_flow(config(model={"name": "no_such_module:f"}), SHAPE)

    def test_module_that_itself_lacks_one_keeps_its_traceback(self, own):
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
            build_flow(config(model={"name": f"{own}_broken:f"}), SHAPE)
