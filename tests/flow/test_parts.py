"""Where a flow may be cut, and what its parts are trained on: objectives, gradients, names."""

import contextlib
import functools
import itertools
import math

import pytest
import torch
from torch import nn

from pipeflow.errors import ConfigError
from pipeflow.flow import ActNorm, Flow, GaussianPrior, Layer, Prior, StandardPrior, cut_names, glow, split_flow
from pipeflow.flow.balance import balance
from pipeflow.use.likelihood import bits_per_dim

CUTS = {
    "one part": [],
    "between blocks": ["blocks.1.squeeze"],
    "across blocks": ["blocks.0.steps.1", "blocks.1.steps.1"],
    "every layer": ["blocks.0.steps.1", "blocks.1.squeeze", "blocks.1.steps.1"],
}


@pytest.fixture
def flow(perturbed):
    """2 blocks of 2 steps with random parameters."""
    return perturbed(glow((3, 8, 8), 2, 2, 6))


@pytest.fixture
def x(normal):
    return normal(4, 3, 8, 8)


@pytest.fixture(params=CUTS)
def parts(request, flow, perturbed):
    """The flow in parts, their heads with random parameters too."""
    parts = split_flow(flow, CUTS[request.param])
    for part in parts[:-1]:
        perturbed(part.head)
    return parts


def outputs(parts, latent):
    """What each part makes of what the one before it sends on."""
    for part in parts:
        output = part(latent)
        yield part, output
        latent = part.outgoing(output)


class TestCutNames:
    @pytest.mark.parametrize(
        "num_steps, num, cuts",
        [
            (4, 1, []),
            (4, 2, ["blocks.0.steps.2"]),
            (4, 3, ["blocks.0.steps.2", "blocks.1.steps.2"]),
            (4, 4, ["blocks.0.steps.2", "blocks.1.steps.2", "blocks.2.steps.2"]),
            (5, 3, ["blocks.0.steps.2", "blocks.1.steps.2"]),
            (2, 4, ["blocks.0.steps.1", "blocks.1.steps.1", "blocks.2.steps.1"]),
        ],
    )
    def test_across_cuts_in_the_middle_of_the_first_blocks(self, num_steps, num, cuts):
        assert cut_names(glow((1, 8, 8), 3, num_steps, 2), "across", num) == cuts

    def test_across_the_published_model(self):
        flow = glow((1, 8, 8), 3, 32, 2)
        assert cut_names(flow, "across", 3) == ["blocks.0.steps.16", "blocks.1.steps.16"]

    @pytest.mark.parametrize("num_blocks", [1, 2, 3])
    @pytest.mark.parametrize("given", [True, False])
    def test_blocks_cuts_after_every_block(self, num_blocks, given):
        flow = glow((1, 8, 8), num_blocks, 2, 2)
        cuts = [f"blocks.{block}.squeeze" for block in range(1, num_blocks)]
        assert cut_names(flow, "blocks", num_blocks if given else None) == cuts

    @pytest.mark.parametrize("names", [[], ["blocks.0.steps.1"], ["blocks.0.steps.1", "blocks.1.squeeze"]])
    def test_names_are_taken_as_they_are(self, flow, names):
        assert cut_names(flow, names) == names
        assert cut_names(flow, tuple(names), len(names) + 1) == names

    def test_one_name_may_stand_by_itself(self, flow):
        assert cut_names(flow, "blocks.0.steps.1") == ["blocks.0.steps.1"]

    @pytest.mark.parametrize("num", [1, 2, 3, 4])
    def test_balanced_is_the_best_of_all_cuts(self, num):
        flow = glow((3, 16, 16), 2, 4, 5)
        allowed = []
        for name in flow.names:
            with contextlib.suppress(ConfigError):
                allowed += cut_names(flow, [name])
        assert len(allowed) == 7

        def dearest(cuts):
            return max(part.multiply_adds() for part in split_flow(flow, cuts))

        cuts = cut_names(flow, "balanced", num)
        assert len(cuts) == num - 1
        assert dearest(cuts) == min(map(dearest, itertools.combinations(allowed, num - 1)))

    def test_balanced_goes_as_far_as_there_are_places(self):
        assert len(cut_names(glow((1, 8, 8), 2, 2, 2), "balanced", 4)) == 3

    @pytest.mark.parametrize(
        "split, num, message",
        [
            (["blocks.0.steps.7"], None, r"'blocks.0.steps.7': there is no such layer; near it are .*blocks.0.steps.1"),
            (["nowhere"], None, "'nowhere': there is no such layer; they are blocks.0.squeeze to blocks.1.steps.1"),
            (["blocks.0.squeeze"], None, "'blocks.0.squeeze': nothing stands before it"),
            (["blocks.1.steps.0"], None, "'blocks.1.steps.0': 'blocks.1.squeeze' .* cut before 'blocks.1.squeeze'"),
            (["blocks.0.factor_out"], None, "'blocks.0.factor_out' belongs to .* cut before 'blocks.1.squeeze'"),
            (["blocks.0.steps.1", "blocks.0.steps.1"], None, "'blocks.0.steps.1' again"),
            (["blocks.1.squeeze", "blocks.0.steps.1"], None, "'blocks.0.steps.1' again or behind a later cut"),
            (["blocks.0.steps.1"], 3, "3 does not agree with parts.split, which gives 2 parts"),
            ("blocks", 3, "3 does not agree with parts.split, which gives 2 parts"),
            ("across", 4, "4 parts across blocks need 3 blocks to cut in, this flow has 2"),
            ("balanced", 5, "5 parts, but this flow can be cut into 4 at most"),
        ],
    )
    def test_a_cut_that_cannot_be_made_says_which_and_why(self, flow, split, num, message):
        with pytest.raises(ConfigError, match=rf"^parts\.(split|num): .*{message}"):
            cut_names(flow, split, num)

    def test_split_flow_checks_its_cuts_too(self, flow):
        with pytest.raises(ConfigError, match=r"'blocks\.1\.steps\.0'"):
            split_flow(flow, ["blocks.1.steps.0"])

    @pytest.mark.parametrize("split, num", [("blocks", None), ("across", 2)])
    def test_a_flow_without_blocks(self, split, num):
        flow = Flow([ActNorm(3), ActNorm(3)], (3, 4, 4))
        with pytest.raises(ConfigError, match=r"^parts\.split: .* blocks\.B\.\*, this flow has 'layers\.0'"):
            cut_names(flow, split, num)
        assert cut_names(flow, "balanced", 2) == ["layers.1"]

    def test_across_blocks_without_steps(self):
        flow = Flow({"blocks.0.a": ActNorm(3), "blocks.0.b": ActNorm(3)}, (3, 4, 4))
        with pytest.raises(ConfigError, match=r"^parts\.split: .* blocks\.B\.steps\.S"):
            cut_names(flow, "across", 2)

    def test_across_blocks_of_one_step(self):
        with pytest.raises(ConfigError, match=r"'blocks\.0\.steps\.0'"):
            cut_names(glow((1, 8, 8), 2, 1, 2), "across", 2)


class TestBalance:
    @staticmethod
    def runs(costs, starts):
        return [sum(costs[first:last]) for first, last in zip(starts, [*starts[1:], len(costs)])]

    @pytest.mark.parametrize("size", range(1, 11))
    @pytest.mark.parametrize("largest", [3, 1000])
    def test_equals_brute_force(self, size, largest):
        generator = torch.Generator().manual_seed(size)
        for num in range(1, size + 1):
            costs = torch.randint(0, largest, (size,), generator=generator).tolist()
            ways = [(0, *starts) for starts in itertools.combinations(range(1, size), num - 1)]
            scores = [(max(runs), sum(run**2 for run in runs)) for runs in (self.runs(costs, way) for way in ways)]
            starts = balance(costs, num)
            assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) == num
            runs = self.runs(costs, starts)
            assert (max(runs), sum(run**2 for run in runs)) == min(scores)

    @pytest.mark.parametrize("seed", range(3))
    def test_costs_may_be_measured_seconds(self, seed):
        costs = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        for num in range(1, 10):
            ways = [(0, *starts) for starts in itertools.combinations(range(1, 9), num - 1)]
            found = max(self.runs(costs, balance(costs, num)))
            assert found == pytest.approx(min(max(self.runs(costs, way)) for way in ways))

    def test_example(self):
        assert balance([3, 1, 1, 1], 2) == [0, 1]

    def test_of_equally_good_ways_early_runs_are_short(self):
        assert balance([1] * 5, 3) == [0, 1, 3]
        assert balance([0, 0, 1], 2) == [0, 1]

    def test_a_deep_flow_over_many_workers(self):
        starts = balance([1, 2, 2, 5] * 70, 200)
        assert len(starts) == 200 and max(self.runs([1, 2, 2, 5] * 70, starts)) == 5


def note_size(sizes: list[int], tensor: torch.Tensor) -> torch.Tensor:
    sizes.append(tensor.numel())
    return tensor


class TestPart:
    def test_parts_hold_each_layer_once_in_order(self, flow, parts):
        assert [name for part in parts for name in part.names] == flow.names
        assert [layer for part in parts for layer in part.layers] == [layer for _, layer in flow.named_layers()]
        assert [part.index for part in parts] == list(range(len(parts)))

    def test_squeeze_and_factor_out_stay_with_their_steps(self, flow):
        first, second, third = split_flow(flow, CUTS["across blocks"])
        assert first.names == ["blocks.0.squeeze", "blocks.0.steps.0"]
        assert second.names == ["blocks.0.steps.1", "blocks.0.factor_out", "blocks.1.squeeze", "blocks.1.steps.0"]
        assert third.names == ["blocks.1.steps.1"]

    def test_shapes_are_those_of_what_travels(self, flow, parts, x):
        expected = flow.shape
        for part, output in outputs(parts, x):
            assert part.input_shape == expected
            assert tuple(output.latent.shape[1:]) == part.output_shape
            expected = part.output_shape
        assert expected == flow.shapes[-1]

    def test_output_types(self, parts, x):
        for _, output in outputs(parts, x):
            assert output.latent.dtype == torch.float32
            assert output.contribution.dtype == output.log_head.dtype == torch.float64
            assert output.contribution.shape == output.log_head.shape == (4,)

    def test_last_latent_is_the_flows_to_the_last_bit(self, flow, parts, x):
        *_, (_, output) = outputs(parts, x)
        assert torch.equal(output.latent, flow(x)[0])

    def test_layers_are_shared_with_the_flow(self, flow, parts):
        own = dict(flow.named_parameters())
        for part in parts:
            for name, parameter in part.global_parameters().items():
                assert name.startswith("heads.") or parameter is own[name]

    def test_recomputing_gives_the_same_numbers_and_keeps_less(self, flow, x):
        found = []
        for activations in ("keep", "recompute"):
            sizes = []
            flow.zero_grad()
            (whole,) = split_flow(flow, [], activations=activations)
            with torch.autograd.graph.saved_tensors_hooks(functools.partial(note_size, sizes), lambda each: each):
                loss = whole.loss(whole(x))
            kept = sum(sizes)
            loss.backward()
            found.append((loss, [parameter.grad.clone() for parameter in flow.parameters()], kept))
        (loss, gradients, kept), (loss_again, gradients_again, kept_again) = found
        assert torch.equal(loss, loss_again) and all(map(torch.equal, gradients, gradients_again))
        assert kept_again < kept / 2
        with torch.no_grad():
            assert torch.equal(whole(x).contribution, split_flow(flow, [])[0](x).contribution)

    def test_inverting_gives_the_same_gradients_and_keeps_no_layer(self, flow, parts, x):
        """What is kept does not grow with the layers, and the error of what the inverses recover is known."""
        cuts = [part.names[0] for part in parts[1:]]
        inverting = split_flow(flow, cuts, activations="invert")
        latent = x
        for plain, inverted in zip(parts, inverting):
            inverted.head.load_state_dict(plain.head.state_dict())
            found, kept = [], []
            for part in (plain, inverted):
                own, sizes = latent.clone().requires_grad_(), []
                with torch.autograd.graph.saved_tensors_hooks(functools.partial(note_size, sizes), lambda each: each):
                    output = part(own)
                    loss = part.loss(output)
                kept.append(sum(sizes))
                found.append([loss, *torch.autograd.grad(loss, [own, *part.parameters()], allow_unused=True)])
            for exact, recovered in zip(*found):
                if exact is not None:
                    torch.testing.assert_close(recovered, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
            assert plain.reconstruction_error is None and 0 < inverted.reconstruction_error < 1e-4
            if len(parts) == 1:
                assert kept[1] < kept[0] / 4
            latent = plain.outgoing(output)

    def test_inverting_says_how_far_off_it_was(self, flow, x):
        """A layer that shrinks by 1e-6 loses what its inverse should give back."""
        with torch.no_grad():
            flow.get_submodule("blocks.0.steps.0").invconv.log_s[0] = -40.0
        (whole,) = split_flow(flow, [], activations="invert")
        whole.loss(whole(x)).backward()
        assert whole.reconstruction_error > 1e-2 or whole.reconstruction_error.isnan()

    def test_inverting_needs_inverses(self):
        class OneWay(Layer):
            def forward(self, x):
                return x, x.new_zeros(len(x))

        flow = Flow([ActNorm(3), OneWay()], (3, 4, 4))
        with pytest.raises(
            ConfigError, match=r"memory.activations: invert .* layer 'layers.1' \(OneWay\) has no inverse"
        ):
            split_flow(flow, [], activations="invert")

    def test_describe(self, flow):
        first, last = split_flow(flow, ["blocks.0.steps.1"])
        assert first.describe() == {
            "layers": ["blocks.0.squeeze", "blocks.0.steps.0"],
            "parameters": sum(each.numel() for each in flow.get_submodule("blocks.0.steps.0").parameters()),
            "head_parameters": 24,
            "forward_macs": (6 * 6 * 9 + 6 * 6 + 6 * 12 * 9 + 12 * 12) * 16,
            "output_shape": [12, 4, 4],
        }
        own = sum(parameter.numel() for parameter in flow.parameters())
        assert first.describe()["parameters"] + last.describe()["parameters"] + 2 * 24 == own
        assert first.multiply_adds() + last.multiply_adds() == flow.multiply_adds()


class TestObjective:
    def test_parts_without_inner_heads_sum_to_the_whole_exactly(self, flow, parts, x):
        total = torch.zeros(4, dtype=torch.float64)
        for _, output in outputs(parts, x):
            total = total + output.contribution
        assert torch.equal(total + output.log_head, flow.log_prob(x))

    def test_loss_is_in_bits_per_dim_of_the_image(self, parts, x):
        for part, output in outputs(parts, x):
            expected = -(output.contribution + output.log_head).mean() / (192 * math.log(2))
            torch.testing.assert_close(part.loss(output), expected, atol=0, rtol=1e-14)  # no float32 in between
            assert part.loss(output).shape == () and part.loss(output).dtype == torch.float64

    def test_losses_without_inner_heads_sum_to_the_whole(self, flow, parts, x):
        bits = 192 * math.log(2)
        losses = [
            part.loss(output) + (0 if part is parts[-1] else output.log_head.mean() / bits)
            for part, output in outputs(parts, x)
        ]
        torch.testing.assert_close(8 + sum(losses), bits_per_dim(flow.log_prob(x).mean(), 192))

    def test_last_exit_is_the_whole_flow(self, flow, parts, x):
        total, exits = torch.zeros(4, dtype=torch.float64), []
        for _, output in outputs(parts, x):
            total = total + output.contribution
            exits.append(bits_per_dim((total + output.log_head).mean(), flow.num_dims))
        assert torch.equal(exits[-1], bits_per_dim(flow.log_prob(x).mean(), flow.num_dims))

    def test_an_exit_is_the_flow_that_stops_there(self, flow, x):
        """B_k: the first parts with their head are a flow by themselves."""
        part, _ = split_flow(flow, ["blocks.1.squeeze"])
        short = Flow(dict(zip(part.names, part.layers)), flow.shape, part.head)
        output = part(x)
        assert torch.equal(output.contribution + output.log_head, short.log_prob(x))

    def test_last_parts_gradient_is_that_of_the_whole_objective(self, flow, parts, x):
        *_, (last, output) = outputs(parts, x)
        own = list(last.global_parameters().values())
        local = torch.autograd.grad(last.loss(output), own)
        whole = torch.autograd.grad(-flow.log_prob(x).mean() / last.nats_per_bit_per_dim, own)
        assert all(torch.equal(one, other) for one, other in zip(local, whole))

    def test_an_earlier_parts_gradient_is_that_of_the_flow_that_stops_there(self, flow, x):
        part, _ = split_flow(flow, ["blocks.1.squeeze"])
        short = Flow(dict(zip(part.names, part.layers)), flow.shape, part.head)
        own = list(part.global_parameters().values())
        local = torch.autograd.grad(part.loss(part(x)), own)
        exit_loss = torch.autograd.grad(bits_per_dim(short.log_prob(x).mean(), short.num_dims), own)
        for one, other in zip(local, exit_loss):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


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

    @pytest.mark.parametrize("kind", ["gaussian", "standard"])
    @pytest.mark.parametrize("name", [name for name in CUTS if CUTS[name]])
    def test_nothing_comes_back(self, flow, x, name, kind):
        parts = split_flow(flow, CUTS[name], kind)
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

    def test_what_goes_on_is_the_latent_itself_without_a_graph(self, parts, x):
        for part, output in outputs(parts, x):
            sent = part.outgoing(output)
            assert torch.equal(sent, output.latent)
            assert not sent.requires_grad and sent.grad_fn is None

    def test_every_own_parameter_is_trained(self, parts, x):
        for part, output in outputs(parts, x):
            own = part.global_parameters()
            gradients = torch.autograd.grad(part.loss(output), list(own.values()), allow_unused=True)
            dead = [name for name, gradient in zip(own, gradients) if gradient is None or not gradient.abs().sum() > 0]
            assert not dead

    def test_training_one_part_leaves_the_others_alone(self, parts, x):
        for trained in parts:
            before = {name: t.clone() for part in parts for name, t in part.global_state().items()}
            optimizer = torch.optim.Adam(trained.global_parameters().values(), lr=1e-3)
            for part, output in outputs(parts, x):
                if part is trained:
                    part.loss(output).backward()
            optimizer.step()
            after = {name: t for part in parts for name, t in part.global_state().items()}
            moved = {name for name in before if not torch.equal(before[name], after[name])}
            assert moved and moved <= set(trained.global_parameters())


class TestNames:
    def test_parameters_are_the_flows_whatever_the_cuts(self, flow, parts):
        names = [name for part in parts for name in part.global_parameters() if not name.startswith("heads.")]
        assert names == [name for name, _ in sorted(flow.named_parameters(), key=lambda item: names.index(item[0]))]
        assert len(names) == len(set(names))

    def test_state_is_the_flows_and_shares_its_memory(self, flow, parts):
        state = {name: tensor for part in parts for name, tensor in part.global_state().items()}
        of_flow = flow.state_dict()
        assert {name for name in state if not name.startswith("heads.")} == set(of_flow)
        assert all(state[name].data_ptr() == of_flow[name].data_ptr() for name in of_flow)

    def test_gathering_is_loading(self, flow, parts, x):
        whole = glow((3, 8, 8), 2, 2, 6)
        state = {name: tensor for part in parts for name, tensor in part.global_state().items()}
        whole.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("heads.")})
        assert torch.equal(whole.log_prob(x), flow.log_prob(x))

    def test_heads_are_named_by_the_layer_they_stand_before(self, flow):
        cuts = CUTS["across blocks"]
        parts = split_flow(flow, cuts)
        assert [part.head_name for part in parts] == [*(f"heads.{cut}" for cut in cuts), "prior"]
        assert {"heads.blocks.0.steps.1.mean", "heads.blocks.0.steps.1.log_scale"} < set(parts[0].global_parameters())
        assert {"prior.mean", "prior.log_scale"} < set(parts[-1].global_parameters())
        assert parts[0].owners() == ["blocks.0.squeeze", "blocks.0.steps.0", "heads.blocks.0.steps.1"]

    def test_heads_are_no_part_of_the_flow(self, flow, parts):
        assert not any(name.startswith("heads") for name in flow.state_dict())


class TestHeads:
    @pytest.mark.parametrize("kind, expected", [("gaussian", GaussianPrior), ("standard", StandardPrior)])
    def test_kinds(self, flow, kind, expected, x):
        parts = split_flow(flow, CUTS["across blocks"], kind)
        assert [type(part.head) for part in parts] == [expected, expected, GaussianPrior]
        assert parts[-1].head is flow.prior
        for part, output in outputs(parts, x):
            assert torch.equal(output.log_head, part.head.log_prob(output.latent).double())

    def test_learned_and_standard_heads_start_as_the_same(self, flow, x):
        gaussian, standard = (split_flow(flow, ["blocks.1.squeeze"], kind)[0] for kind in ("gaussian", "standard"))
        torch.testing.assert_close(gaussian(x).log_head, standard(x).log_head)
        assert gaussian.describe()["head_parameters"] == 12 and standard.describe()["head_parameters"] == 0

    def test_any_module_with_a_log_prob_will_do(self, flow, x):
        """Nothing may assume a Gaussian: here a small net says how likely a latent is."""

        class NetHead(Prior):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(192, 1)

            def log_prob(self, latent):
                return self.net(latent.flatten(1))[:, 0]

        part, _ = split_flow(flow, ["blocks.0.steps.1"])
        part.head = NetHead()
        assert {"heads.blocks.0.steps.1.net.weight", "heads.blocks.0.steps.1.net.bias"} < set(part.global_parameters())
        part.loss(part(x)).backward()
        assert part.head.net.weight.grad.abs().sum() > 0


class TestInitialize:
    @pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
    def test_part_after_part_equals_the_whole(self, cuts, x):
        whole = glow((3, 8, 8), 2, 2, 6)
        cut = glow((3, 8, 8), 2, 2, 6)
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

    @pytest.mark.parametrize("head", [True, False])
    def test_head_is_initialised_when_asked(self, flow, x, head):
        class Counting(StandardPrior):
            shapes = []

            def initialize(self, latent):
                self.shapes.append(tuple(latent.shape))

        part, _ = split_flow(flow, ["blocks.1.squeeze"])
        part.head = Counting((6, 4, 4))
        Counting.shapes = []
        part.initialize(x, head=head)
        assert Counting.shapes == ([(4, 6, 4, 4)] if head else [])


class Flatten(Layer):
    """Images to vectors."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, y):
        return y.view(-1, *self.shape)

    def output_shape(self, shape):
        return (math.prod(shape),)


class MaskedCoupling(Layer):
    """A coupling of RealNVP on vectors, with a dense net; `parity` says which values stay."""

    def __init__(self, num_values, parity, width=16):
        super().__init__()
        self.register_buffer("mask", (torch.arange(num_values) % 2 == parity).float())
        self.net = nn.Sequential(nn.Linear(num_values, width), nn.Tanh(), nn.Linear(width, 2 * num_values))

    def shift_and_log_scale(self, kept):
        shift, log_scale = self.net(kept).chunk(2, dim=1)
        return shift * (1 - self.mask), torch.tanh(log_scale) * (1 - self.mask)

    def forward(self, x):
        shift, log_scale = self.shift_and_log_scale(x * self.mask)
        return x * torch.exp(log_scale) + shift, log_scale.sum(dim=1)

    def inverse(self, y):
        shift, log_scale = self.shift_and_log_scale(y * self.mask)
        return (y - shift) * torch.exp(-log_scale)


class TestOwnFlow:
    """A small RealNVP of a user's own layers, cut and trained by parts."""

    @pytest.fixture
    def own(self):
        layers = [Flatten((1, 4, 4)), *(MaskedCoupling(16, index % 2) for index in range(4))]
        return Flow(layers, (1, 4, 4))

    @pytest.fixture
    def images(self, normal):
        """Neighbours are alike, so that there is something to learn."""
        smooth = nn.functional.interpolate(normal(64, 1, 2, 2), size=4, mode="bilinear")
        return 0.3 * smooth + 0.05 * normal(64, 1, 4, 4)

    def test_inverse_and_samples(self, own, images):
        latent, _, taken_out = own(images)
        torch.testing.assert_close(own.inverse(latent, taken_out), images, atol=1e-5, rtol=0)
        assert own.sample(3, torch.Generator().manual_seed(0)).shape == (3, 1, 4, 4)

    def test_cut_by_name_and_by_balance(self, own):
        assert own.multiply_adds() == 4 * (16 * 16 + 16 + 16 * 32 + 32)
        first, _ = split_flow(own, cut_names(own, ["layers.2"]))
        assert first.names == ["layers.0", "layers.1"] and first.output_shape == (16,)
        assert first.head_name == "heads.layers.2" and first.global_parameters()["heads.layers.2.mean"].shape == (16,)
        assert cut_names(own, "balanced", 2) == ["layers.3"]
        assert cut_names(own, "balanced", 4) == ["layers.2", "layers.3", "layers.4"]

    @pytest.mark.parametrize("cuts", [["layers.2"], ["layers.2", "layers.4"]])
    def test_trains_by_parts(self, own, images, cuts):
        parts = split_flow(own, cuts)
        optimizers = [torch.optim.Adam(part.global_parameters().values(), lr=1e-2) for part in parts]
        history = []
        for _ in range(50):
            total, exits = torch.zeros(64, dtype=torch.float64), []
            for part, output in outputs(parts, images):
                optimizers[part.index].zero_grad()
                part.loss(output).backward()
                optimizers[part.index].step()
                total = total + output.contribution.detach()
                exits.append(bits_per_dim((total + output.log_head).mean().item(), own.num_dims))
            history.append(exits)
        assert all(last < first - 1 for first, last in zip(history[0], history[-1]))


def test_a_layer_that_breaks_its_contract_is_named_before_training():
    class Wide(Layer):
        def forward(self, x):
            return x, x.new_zeros(len(x), 1)

    (part,) = split_flow(Flow([Wide()], (3, 4, 4)), [])
    with pytest.raises(ConfigError, match=r"'layers.0' returns a contribution of shape \[2, 1\]"):
        part.initialize(torch.zeros(2, 3, 4, 4))
