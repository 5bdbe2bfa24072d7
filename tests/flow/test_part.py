"""Parts of a flow: their objectives, the isolation of their gradients, their names and their initialisation."""

import math

import pytest
import torch
from torch import nn

from pipeflow.config import PartsConfig
from pipeflow.errors import ConfigError
from pipeflow.flow import Flow, GaussianPrior, Layer, Prior, StandardPrior, glow, head_maker, split_flow
from pipeflow.flow.heads import HEADS, AutoregressiveHead

CUTS = {
    "one part": [],
    "between blocks": ["blocks.1.squeeze"],
    "across blocks": ["blocks.0.steps.1", "blocks.1.steps.1"],
    "every layer": ["blocks.0.steps.1", "blocks.1.squeeze", "blocks.1.steps.1"],
}


@pytest.fixture(params=CUTS)
def parts(request, flow, perturbed):
    """The flow in parts, their heads with random parameters too."""
    parts = split_flow(flow, CUTS[request.param])
    for part in parts[:-1]:
        perturbed(part.head)
    return parts


def outputs(parts, latent):
    """Each part with its output for the latent that the part before it sends on."""
    for part in parts:
        output = part(latent)
        yield part, output
        latent = part.outgoing(output)


def state_of(parts):
    return {name: tensor for part in parts for name, tensor in part.global_state().items()}


class TestPart:
    def test_parts_hold_each_layer_once_in_order_with_the_shapes_of_their_outputs(self, flow, parts, x):
        assert [item for part in parts for item in part.named_layers()] == list(flow.named_layers())
        expected = flow.shape
        for index, (part, output) in enumerate(outputs(parts, x)):
            assert part.index == index and part.input_shape == expected
            expected = part.output_shape
            assert output.latent.shape == (4, *expected) and output.latent.dtype == torch.float32
            assert output.contribution.dtype == output.log_head.dtype == torch.float64
            assert output.contribution.shape == output.log_head.shape == (4,)
        assert expected == flow.shapes[-1]
        assert torch.equal(output.latent, flow(x)[0])

    def test_describe(self, flow):
        first, last = split_flow(flow, ["blocks.0.steps.1"])
        assert first.describe() == {
            "layers": ["blocks.0.squeeze", "blocks.0.steps.0"],
            "parameters": sum(each.numel() for each in flow.get_submodule("blocks.0.steps.0").parameters()),
            "head_parameters": 24,
            "forward_macs": (6 * 6 * 9 + 6 * 6 + 6 * 12 * 9 + 12 * 12) * 16,
            "head_macs": 0,
            "output_shape": [12, 4, 4],
        }
        own = sum(parameter.numel() for parameter in flow.parameters())
        assert first.describe()["parameters"] + last.describe()["parameters"] + 2 * 24 == own
        assert first.multiply_adds() + last.multiply_adds() == flow.multiply_adds()


class TestObjective:
    def test_loss_is_in_bits_per_dim_and_without_inner_heads_the_parts_sum_to_the_whole(self, flow, parts, x):
        total = torch.zeros(4, dtype=torch.float64)
        for part, output in outputs(parts, x):
            expected = -(output.contribution + output.log_head).mean() / (192 * math.log(2))
            torch.testing.assert_close(part.loss(output), expected, atol=0, rtol=1e-14)  # no float32 in between
            assert part.loss(output).shape == () and part.loss(output).dtype == torch.float64
            total = total + output.contribution
        assert torch.equal(total + output.log_head, flow.log_prob(x))

    def test_last_parts_gradient_is_that_of_the_whole_objective(self, flow, parts, x):
        *_, (last, output) = outputs(parts, x)
        own = list(last.global_parameters().values())
        local = torch.autograd.grad(last.loss(output), own)
        whole = torch.autograd.grad(-flow.log_prob(x).mean() / last.values.nats_per_bit_per_dim, own)
        assert all(map(torch.equal, local, whole))

    def test_an_earlier_parts_objective_is_that_of_the_flow_that_stops_there(self, flow, x):
        """B_k: the first parts with their head are a flow by themselves."""
        part, _ = split_flow(flow, ["blocks.1.squeeze"])
        short = Flow(dict(zip(part.names, part.layers)), flow.shape, part.head)
        output = part(x)
        assert torch.equal(output.contribution + output.log_head, short.log_prob(x))
        own = list(part.global_parameters().values())
        local = torch.autograd.grad(part.loss(output), own)
        exit_loss = torch.autograd.grad(short.values.bits_per_dim(short.log_prob(x).mean()), own)
        torch.testing.assert_close(local, exit_loss, atol=1e-6, rtol=1e-5)


class TestIsolation:
    """No gradient crosses a cut, though all parts stand in one graph here."""

    @staticmethod
    def gradients_before(parts, x, link):
        """For each part but the first: its loss's gradients in every earlier parameter, its input's source and x."""
        x = x.clone().requires_grad_()
        latent, earlier, found = x, [x], []
        for part in parts:
            output = part(latent)
            if part.index:
                found += torch.autograd.grad(part.loss(output), earlier, retain_graph=True, allow_unused=True)
            earlier += [*part.global_parameters().values(), output.latent]
            latent = link(part, output)
        return found

    @pytest.mark.parametrize("kind", HEADS)
    @pytest.mark.parametrize("name", [name for name in CUTS if CUTS[name]])
    def test_nothing_comes_back(self, flow, x, name, kind):
        parts = split_flow(flow, CUTS[name], head_maker(PartsConfig(head=kind)))
        found = self.gradients_before(parts, x, lambda part, output: part.outgoing(output))
        assert len(found) > 30 and all(gradient is None for gradient in found)

    def test_without_the_detach_everything_would(self, flow, x):
        """So that the test above can fail: handing on the latent itself reaches every layer before."""
        parts = split_flow(flow, CUTS["across blocks"])
        found = self.gradients_before(parts, x, lambda part, output: output.latent)
        on_no_latents_path = 2 + 2 + 2 + 3  # head 0 seen from parts 1 and 2, head 1 and the factor-out's prior from 2
        only_what_is_taken_out = len(list(flow.get_submodule("blocks.0.steps.1.coupling").parameters()))  # seen from 2
        assert sum(gradient is None for gradient in found) == on_no_latents_path
        reached = [gradient for gradient in found if gradient is not None and gradient.abs().sum() > 0]
        assert len(reached) == len(found) - on_no_latents_path - only_what_is_taken_out > 40

    def test_a_parts_loss_trains_all_of_its_parameters_and_no_others(self, parts, x):
        for trained in parts:
            before = {name: tensor.clone() for name, tensor in state_of(parts).items()}
            own = trained.global_parameters()
            optimizer = torch.optim.Adam(own.values(), lr=1e-3)
            for part, output in outputs(parts, x):
                if part is trained:
                    part.loss(output).backward()
            assert all(parameter.grad.abs().sum() > 0 for parameter in own.values())
            optimizer.step()
            moved = {name for name, tensor in state_of(parts).items() if not torch.equal(before[name], tensor)}
            assert moved and moved <= set(own)


class TestNames:
    def test_parameters_and_buffers_are_the_flows_whatever_the_cuts(self, flow, parts):
        named = {name: each for part in parts for name, each in part.global_parameters().items()}
        named = {name: each for name, each in named.items() if not name.startswith("heads.")}
        own = dict(flow.named_parameters())
        assert named.keys() == own.keys() and all(each is own[name] for name, each in named.items())
        flows, state = flow.state_dict(), state_of(parts)
        assert flows.keys() == {name for name in state if not name.startswith("heads.")}
        assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in flows.items())

    @pytest.mark.parametrize(
        "kind, expected",
        [("gaussian", GaussianPrior), ("standard", StandardPrior), ("autoregressive", AutoregressiveHead)],
    )
    def test_heads_are_of_a_kind_and_named_by_the_layer_they_stand_before(self, flow, kind, expected, x):
        cuts = CUTS["across blocks"]
        parts = split_flow(flow, cuts, head_maker(PartsConfig(head=kind)))
        assert [type(part.head) for part in parts] == [expected, expected, GaussianPrior]
        assert parts[-1].head is flow.prior
        assert [part.head_name for part in parts] == [*(f"heads.{cut}" for cut in cuts), "prior"]
        assert parts[0].owners() == ["blocks.0.squeeze", "blocks.0.steps.0", "heads.blocks.0.steps.1"]
        assert {"prior.mean", "prior.log_scale"} < set(parts[-1].global_parameters())
        about, cost = parts[0].describe(), parts[0].head.multiply_adds()
        assert about["head_parameters"] == sum(each.numel() for each in parts[0].head.parameters())
        assert about["head_macs"] == cost == parts[0].multiply_adds() - parts[0].multiply_adds(with_head=False)
        assert (cost > 0) == (kind == "autoregressive") and parts[-1].describe()["head_macs"] == 0
        for part, output in outputs(parts, x):
            assert torch.equal(output.log_head, part.head.log_prob(output.latent).double())


class TestInitialize:
    @pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
    def test_part_after_part_equals_the_whole(self, cuts, x):
        whole, cut = glow((3, 8, 8), 2, 2, 6), glow((3, 8, 8), 2, 2, 6)
        cut.load_state_dict(whole.state_dict())
        untouched = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
        whole.initialize(x)
        latent = x
        for part in split_flow(cut, cuts):
            latent = part.initialize(latent)
        expected = whole.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in cut.state_dict().items())
        assert torch.equal(latent, whole(x)[0]) and not latent.requires_grad
        assert any(not torch.equal(untouched[name], expected[name]) for name in expected)

    def test_layers_and_head_are_initialised_when_asked_and_any_module_with_a_log_prob_is_a_head(self, x):
        """Nothing may assume a Gaussian: here a small net says how likely a latent is."""

        class NetHead(Prior):
            def __init__(self):
                super().__init__()
                self.net, self.shapes = nn.Linear(96, 1), []

            def log_prob(self, latent):
                return self.net(latent.flatten(1))[:, 0]

            def initialize(self, latent):
                self.shapes.append(tuple(latent.shape))

        part, _ = split_flow(glow((3, 8, 8), 2, 2, 6), ["blocks.1.squeeze"])
        part.head = NetHead()
        actnorm = part.layers[1].actnorm
        part.initialize(x, layers=False)
        assert part.head.shapes == [(4, 6, 4, 4)] and not actnorm.initialized
        part.initialize(x, head=False)
        assert len(part.head.shapes) == 1 and actnorm.initialized
        assert {"heads.blocks.1.squeeze.net.weight", "heads.blocks.1.squeeze.net.bias"} < set(part.global_parameters())
        part.loss(part(x)).backward()
        assert part.head.net.weight.grad.abs().sum() > 0

    def test_a_layer_that_breaks_its_contract_is_named(self):
        class Wide(Layer):
            def forward(self, x):
                return x, x.new_zeros(len(x), 1)

        (part,) = split_flow(Flow([Wide()], (3, 4, 4)), [])
        with pytest.raises(ConfigError, match=r"'layers.0' returns a contribution of shape \[2, 1\]"):
            part.initialize(torch.zeros(2, 3, 4, 4))

    @pytest.mark.parametrize("add, kinds", [(lambda x: (x, 0.0), "Tensor, float"), (lambda x: x, "Tensor")])
    def test_a_layer_that_returns_no_two_tensors_is_named(self, add, kinds):
        class Flip(Layer):
            def forward(self, x):
                return add(x)

        flow = Flow([Flip()], (3, 4, 4))
        (part,) = split_flow(flow, [])
        for name, call in (("layers.0", part.initialize), ("Flip", flow.log_prob)):
            with pytest.raises(ConfigError, match=rf"layer '{name}' returns {kinds}: .*x\.new_zeros\(len\(x\)\)"):
                call(torch.zeros(2, 3, 4, 4))
