"""Glow as it was published, and the flow that a configuration describes."""

import pytest
import torch
from torch._dynamo.utils import counters as dynamo_stats

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow import ActNorm, Coupling, InvertibleConv1x1, Squeeze, build_flow, glow, split_flow

SHAPE = (3, 8, 8)


def config(**sections) -> Config:
    small = {"model": {"num_blocks": 2, "num_steps": 2, "width": 4}, "parts": {"split": "balanced", "num": 2}}
    return Config.from_dict({**small, **sections})


class TestGlow:
    def test_published_model(self):
        """44 million parameters, and the published multiply-adds and shapes of each block."""
        flow = glow((3, 32, 32))
        assert sum(parameter.numel() for parameter in flow.parameters()) == pytest.approx(44e6, rel=0.01)
        costs = [0, 0, 0]
        for name, cost in zip(flow.names, flow.layer_multiply_adds()):
            costs[int(name.split(".")[1])] += cost
        assert [cost / 1e9 for cost in costs] == pytest.approx([2.83, 0.88, 0.30], rel=0.02)
        assert flow.multiply_adds() == sum(costs)
        assert len(flow.names) == 3 * 33 + 2
        assert flow.shapes[flow.names.index("blocks.1.squeeze")] == (6, 16, 16)
        assert flow.shapes[flow.names.index("blocks.2.steps.0")] == flow.shapes[-1] == (48, 4, 4)

    def test_names_in_order(self):
        assert glow(SHAPE, 2, 2, 4).names == [
            "blocks.0.squeeze", "blocks.0.steps.0", "blocks.0.steps.1", "blocks.0.factor_out",
            "blocks.1.squeeze", "blocks.1.steps.0", "blocks.1.steps.1",
        ]  # fmt: skip

    def test_untrained_bits_per_dim_are_those_of_its_priors(self, normal):
        """Additive couplings and rotations start without changing the norm, so the density at the start is known."""
        flow, x = glow(SHAPE, 2, 2, 4, coupling="additive"), 0.1 * normal(4, *SHAPE)
        expected = torch.distributions.Normal(0, 1).log_prob(x).flatten(1).sum(dim=1).double()
        torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-3, rtol=0)


def loss_and_gradients(normal, perturbed, **sections) -> list[torch.Tensor]:
    """Loss of the whole flow on a batch, its gradients in the batch and in the parameters, which are random."""
    flow = build_flow(config(**sections), SHAPE)
    flow.initialize(0.1 * normal(8, *SHAPE, seed=2))
    (whole,) = split_flow(perturbed(flow, 0.05), [])
    x = (0.1 * normal(8, *SHAPE)).requires_grad_()
    loss = whole.loss(whole(x))
    return [loss, *torch.autograd.grad(loss, [x, *whole.parameters()])]


class TestBuildFlow:
    def test_options_reach_the_model(self):
        flow = build_flow(config(model={"num_blocks": 1, "num_steps": 3, "width": 7}), SHAPE)
        assert flow.names == ["blocks.0.squeeze", *(f"blocks.0.steps.{step}" for step in range(3))]
        assert flow.state_dict()["blocks.0.steps.2.coupling.net.conv_mid.weight"].shape == (7, 7, 1, 1)
        flow = build_flow(config(model={"num_blocks": 1, "coupling": "additive", "invconv": "plain"}), SHAPE)
        assert "blocks.0.steps.0.invconv.weight" in flow.state_dict()
        assert flow.state_dict()["blocks.0.steps.0.coupling.net.conv_out.conv.bias"].shape == (6,)
        rough = build_flow(config(precision={"coupling": "bfloat16"}), SHAPE)
        assert all(m.net.dtype == torch.bfloat16 for m in rough.modules() if isinstance(m, Coupling))
        assert all(parameter.dtype == torch.float32 for parameter in rough.parameters())

    @pytest.mark.slow  # compiling takes half a minute where nothing is cached
    def test_fast_and_compiled_are_the_reference_but_for_rounding_and_compile_once_for_a_block(self, normal, perturbed):
        """Losses and norms of gradients agree to 1e-5. A step is compiled without gradients and with them."""
        model = {"num_blocks": 1, "num_steps": 2}
        dynamo_stats.clear()
        reference, compiled, fast = (
            loss_and_gradients(normal, perturbed, model=model, precision=precision)
            for precision in ({"step": "reference"}, {"compile": True}, {"step": "fast"})
        )
        assert dynamo_stats["stats"]["unique_graphs"] == 2
        norm = torch.stack([each.norm() for each in reference[1:]]).norm()
        for found in (compiled, fast):
            torch.testing.assert_close(found[0], reference[0], rtol=1e-5, atol=0)
            assert not torch.equal(found[0], reference[0]), "this was the reference itself"
            apart = torch.stack([(ours - theirs).norm() for ours, theirs in zip(found[1:], reference[1:])]).norm()
            assert apart < 1e-5 * norm
        names = [list(build_flow(config(precision={"compile": each}), SHAPE).state_dict()) for each in (True, False)]
        assert names[0] == names[1]

    @pytest.mark.parametrize(
        "shape, says",
        [
            ((3, 6, 8), r"model\.num_blocks: 2 blocks .* multiples of 4, .* set data.pad to 4"),
            ((3, 8, 6), r"model\.num_blocks: 2 blocks .* multiples of 4"),
            ((3,), r"model\.name: glow takes images .* an item of the data has the shape \[3\]: set model.name"),
        ],
    )
    def test_images_that_do_not_fit(self, shape, says):
        with pytest.raises(ConfigError, match=says):
            build_flow(config(), shape)

    @pytest.mark.parametrize("name", ["glow", f"{__name__}:layers"])
    def test_values_come_from_the_seed_alone(self, name):
        def state(seed):
            asked = config(model={"name": name, "num_blocks": 1}, run={"seed": seed})
            return torch.cat([value.flatten() for value in build_flow(asked, SHAPE).state_dict().values()])

        before = torch.get_rng_state()
        one = state(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(9)
        assert torch.equal(state(3), one) and not torch.equal(state(4), one)


def layers(config, shape):
    return [Squeeze(), InvertibleConv1x1(4 * shape[0])]


def named(config, shape):
    return {"body.first": ActNorm(shape[0]), "body.second": ActNorm(shape[0])}


def whole(config, shape):
    return glow(shape, config.model.num_blocks, 1, 4)


def nothing(config, shape):
    pass


def misfit(config, shape):
    return [Squeeze(), ActNorm(shape[0])]


def other_images(config, shape):
    return glow((shape[0], 16, 16), 1, 1, 4)


class TestOwnFlow:
    """Functions of a user's, which are those of this module here."""

    @pytest.mark.parametrize(
        "function, names",
        [
            ("layers", ["layers.0", "layers.1"]),
            ("named", ["body.first", "body.second"]),
            ("whole", ["blocks.0.squeeze", "blocks.0.steps.0"]),
        ],
    )
    def test_layers_by_list_or_name_and_whole_flows(self, function, names):
        flow = build_flow(config(model={"name": f"{__name__}:{function}", "num_blocks": 1}), SHAPE)
        assert flow.names == names and flow.shape == SHAPE

    @pytest.mark.parametrize(
        "function, message",
        [
            ("nothing", "returned a NoneType: return a list of layers or a Flow"),
            ("misfit", r"layer 'layers.1' cannot take a latent of shape \(12, 4, 4\)"),
            ("other_images", r"for images of shape \(3, 16, 16\), but the data has \(3, 8, 8\)"),
        ],
    )
    def test_errors_name_the_option_and_the_fault(self, function, message):
        with pytest.raises(ConfigError, match=rf"^model\.name: {__name__}:{function}.*{message}"):
            build_flow(config(model={"name": f"{__name__}:{function}"}), SHAPE)
