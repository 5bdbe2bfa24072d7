"""Where a flow may be cut, and the messages about cuts that cannot be made."""

import pytest

from pipeflow.config import Config, PartsConfig
from pipeflow.errors import ConfigError
from pipeflow.flow import ActNorm, Flow, build_flow, configured_cuts, cut_names, glow, head_maker, split_flow


@pytest.mark.parametrize(
    "num_blocks, num_steps, split, num, cuts",
    [
        (3, 4, "across", 1, []),
        (3, 4, "across", 2, ["blocks.0.steps.2"]),
        (3, 5, "across", 3, ["blocks.0.steps.2", "blocks.1.steps.2"]),
        (3, 2, "across", 4, ["blocks.0.steps.1", "blocks.1.steps.1", "blocks.2.steps.1"]),
        (1, 2, "blocks", None, []),
        (3, 2, "blocks", None, ["blocks.1.squeeze", "blocks.2.squeeze"]),
        (2, 2, "blocks", 2, ["blocks.1.squeeze"]),
        (2, 4, "balanced", 2, ["blocks.0.steps.3"]),
        (2, 4, "balanced", 3, ["blocks.0.steps.2", "blocks.1.squeeze"]),
        (2, 2, "balanced", 4, ["blocks.0.steps.1", "blocks.1.squeeze", "blocks.1.steps.1"]),  # all that may be cut
    ],
)
def test_cuts_by_kind_of_split(num_blocks, num_steps, split, num, cuts):
    assert cut_names(glow((1, 8, 8), num_blocks, num_steps, 2), split, num) == cuts


def test_names_are_taken_as_they_are(flow):
    assert cut_names(flow, "blocks.0.steps.1") == ["blocks.0.steps.1"]
    for names in ([], ["blocks.0.steps.1", "blocks.1.squeeze"]):
        assert cut_names(flow, names) == cut_names(flow, tuple(names), len(names) + 1) == names


@pytest.mark.parametrize(
    "split, num, message",
    [
        (["blocks.0.steps.7"], None, r"'blocks.0.steps.7': there is no such layer; near it are .*blocks.0.steps.1"),
        (["nowhere"], None, "'nowhere': there is no such layer; they are blocks.0.squeeze to blocks.1.steps.1"),
        (["blocks.0.squeeze"], None, "'blocks.0.squeeze': nothing stands before it.*; cut before 'blocks.0.steps.1'"),
        (["blocks.1.steps.0"], None, "'blocks.1.steps.0': 'blocks.1.squeeze' .* cut before 'blocks.1.squeeze' or"),
        (
            ["blocks.0.factor_out"],
            None,
            "'blocks.0.factor_out' belongs to .*cut before 'blocks.0.steps.1' or 'blocks.1.squeeze'",
        ),
        (["blocks.0.steps.1", "blocks.0.steps.1"], None, "'blocks.0.steps.1' again"),
        (["blocks.1.squeeze", "blocks.0.steps.1"], None, "'blocks.0.steps.1' again or behind a later cut"),
        ("blocks", 3, "3 does not agree with parts.split, which gives 2 parts: set parts.num to 2 or null"),
        ("across", 4, "4 parts across blocks need 3 blocks to cut in, this flow has 2: set parts.num to 3"),
        ("balanced", 5, "5 parts, but this flow can be cut into 4 at most"),
        ("across", None, "a split 'across' needs the number of parts"),
    ],
)
def test_a_cut_that_cannot_be_made_says_which_and_why(flow, split, num, message):
    with pytest.raises(ConfigError, match=rf"^parts\.(split|num): .*{message}"):
        cut_names(flow, split, num)
    if not isinstance(split, str) and num is None:
        with pytest.raises(ConfigError, match=message):
            split_flow(flow, split)


@pytest.mark.parametrize(
    "names, split, num, message",
    [
        (["layers.0", "layers.1"], "blocks", None, r"blocks\.B\.\*, this flow has 'layers\.0'"),
        (["layers.0", "layers.1"], "across", 2, r"blocks\.B\.\*, this flow has 'layers\.0'"),
        (["blocks.0.a", "blocks.0.b"], "across", 2, r"blocks\.B\.steps\.S"),
        (["blocks.0.steps.0", "blocks.1.steps.0"], "across", 2, r"blocks\.B\.steps\.S, and some block has fewer"),
    ],
)
def test_a_flow_without_blocks_or_enough_steps_may_be_balanced(names, split, num, message):
    flow = Flow({name: ActNorm(3) for name in names}, (3, 4, 4))
    with pytest.raises(ConfigError, match=rf"^parts\.split: .*{message}"):
        cut_names(flow, split, num)
    assert cut_names(flow, "balanced", 2) == names[1:]


def test_a_flow_that_cannot_be_cut_says_so():
    with pytest.raises(
        ConfigError, match="nothing stands before it.* this flow cannot be cut at all: set parts.num to 1"
    ):
        cut_names(Flow([ActNorm(3)], (3, 4, 4)), ["layers.0"])


NEWCOMERS = [
    ({"split": ["blocks.0.steps.1"]}, {}, ["blocks.0.steps.1"]),
    ({"split": "blocks"}, {"num_blocks": 2}, ["blocks.1.squeeze"]),
    ({"split": "blocks"}, {"num_steps": 1}, ["blocks.1.squeeze", "blocks.2.squeeze"]),
    ({"split": "balanced"}, {"num_blocks": 1, "num_steps": 1}, []),
    ({"split": "balanced"}, {"num_blocks": 2, "num_steps": 1}, ["blocks.1.squeeze"]),
    ({}, {"num_blocks": 1}, ["blocks.0.steps.1"]),
    ({}, {"num_blocks": 2}, ["blocks.0.steps.1", "blocks.1.steps.1"]),
    ({"num": 1}, {"num_steps": 1}, []),
]


@pytest.mark.parametrize("parts, model, cuts", NEWCOMERS)
def test_an_option_does_not_disagree_with_defaults(parts, model, cuts):
    config = Config.from_dict({"parts": parts, "model": {"width": 4, **model}})
    flow = build_flow(config, (3, 16, 16))
    assert configured_cuts(flow, config) == cuts and config.num_parts == len(cuts) + 1


def test_a_short_flow_of_ones_own_is_balanced_into_as_many_parts_as_it_has_layers():
    flow, balanced = Flow([ActNorm(3), ActNorm(3)], (3, 4, 4)), {"split": "balanced"}
    config = Config.from_dict({"model": {"name": "mine:flow"}, "parts": balanced})
    assert configured_cuts(flow, config) == ["layers.1"]
    with pytest.raises(ConfigError, match="3 parts, but this flow can be cut into 2 at most: set it to that"):
        configured_cuts(flow, Config.from_dict({"parts": {**balanced, "num": 3}}))


@pytest.mark.parametrize("schedule", [{"mode": "end_to_end"}, {"local_epochs": 0}])
def test_a_run_in_which_no_part_trains_by_itself_needs_no_cut(schedule):
    for parts, model in [({}, {"num_steps": 1}), ({"num": 9}, {}), ({"split": ["nowhere"]}, {}), ({"num": 2}, {})]:
        config = Config.from_dict({"parts": parts, "model": {"width": 4, **model}, "schedule": schedule})
        assert len(configured_cuts(build_flow(config, (3, 16, 16)), config)) == (parts == {"num": 2})


DEEP_HEADS = {"head": "autoregressive", "head_depth": 2, "split": "balanced", "num": 2}


def test_heads_weigh_only_where_parts_train_by_themselves():
    cuts = {}
    for mode in ("concurrent", "end_to_end"):
        sections = {"parts": DEEP_HEADS, "model": {"width": 4}, "schedule": {"mode": mode}}
        config = Config.from_dict(sections)
        cuts[mode] = configured_cuts(build_flow(config, (3, 16, 16)), config)
    plain = Config.from_dict({"parts": {**DEEP_HEADS, "head": "gaussian"}, "model": {"width": 4}})
    assert cuts["end_to_end"] == configured_cuts(build_flow(plain, (3, 16, 16)), plain) != cuts["concurrent"]


@pytest.mark.parametrize("mode, weighs", [("concurrent", True), ("alternate", False), ("sequential", False)])
def test_averaged_weights_weigh_only_where_parts_train_at_once(mode, weighs):
    """Elsewhere nothing is handed on by a part that trains."""

    def cuts(latents):
        sections = {"schedule": {"mode": mode}, "model": {"num_steps": 8, "width": 8}, "optim": {"ema": 0.9}}
        config = Config.from_dict({**sections, "parts": {"split": "balanced", "num": 3, "latents": latents}})
        return configured_cuts(build_flow(config, (3, 8, 8)), config)

    assert (cuts("averaged") != cuts("trained")) == weighs


def test_measured_seconds_of_layers_without_multiply_adds_do_not_price_heads():
    flow = Flow([ActNorm(3) for _ in range(4)], (3, 4, 4))
    assert not any(flow.layer_multiply_adds())
    head = head_maker(PartsConfig(head="autoregressive"))
    assert cut_names(flow, "balanced", 2, [1.0, 1.0, 1.0, 1.0], head) == ["layers.2"]
