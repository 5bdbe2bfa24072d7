"""benchmarks/step: normflows' Glow is ours, the roofline counts what the flow counts, turns are taken, tables are true."""

import json

import pytest
import torch
from torch import nn

from benchmarks.machine import describe_machine
from benchmarks.step import memory, run
from benchmarks.step.report import GOALS, judge, report
from benchmarks.step.rival import make_glow
from benchmarks.step.roofline import layer_kinds
from benchmarks.step.run import added, check_parameters, measure
from benchmarks.step.systems import NORMFLOWS, PIPEFLOW, PUBLISHED, SMALL, TOY, Case, configuration
from pipeflow.config import Config
from pipeflow.data import Batches, load_data
from pipeflow.flow import FlowStep, glow
from tests.benchmarks.pretended import MACHINE

pytestmark = pytest.mark.slow
SHAPE = (3, 32, 32)


MODELS = pytest.mark.parametrize("model", [SMALL, {**PUBLISHED, "num_steps": 1}], ids=["small", "wide"])


@MODELS
@pytest.mark.parametrize("net_actnorm", [True, False])
def test_parameters_agree(model, net_actnorm):
    ours, theirs = (
        sum(parameter.numel() for parameter in flow.parameters())
        for flow in (glow(SHAPE, **model), make_glow(SHAPE, model, net_actnorm))
    )
    assert ours == pytest.approx(theirs, rel=0.02)


def test_unequal_flows_are_not_compared():
    equal = {"normflows": {"num_parameters": 1000}, "fast": {"num_parameters": 1019}, "big": {"out_of_memory": ""}}
    check_parameters(equal)
    with pytest.raises(ValueError, match="more than 2% in parameters"):
        check_parameters({**equal, "fast": {"num_parameters": 1021}})


@torch.no_grad()
def test_normflows_with_our_weights_gives_our_likelihood():
    """While the factor-outs' priors, where the two differ, are what they begin with."""
    model = {"num_blocks": 2, "num_steps": 2, "width": 16}
    config = configuration(Case("tiny", model, 16, "cpu"), {})
    images = Batches(load_data(config.data), 0, 16, flip=False).initial()
    torch.manual_seed(0)
    ours, theirs = glow(SHAPE, **model), make_glow(SHAPE, model, net_actnorm=True)
    ours.initialize(images)
    theirs.forward_kld(images)
    blocks = [[layer for name, layer in ours.named_layers() if name.startswith(f"blocks.{b}.steps")] for b in (0, 1)]
    for level, steps in zip(theirs.flows, reversed(blocks)):
        for step, block in zip(reversed(steps), level):
            nn.init.normal_(step.coupling.net.conv_out.conv.weight, std=0.1)
            copy_step(step, block)
    torch.testing.assert_close(theirs.log_prob(images, None), ours.log_prob(images).float(), rtol=1e-5, atol=0.05)


def copy_step(step: FlowStep, block: nn.Module) -> None:
    """The values of our flow step into a GlowBlock."""
    coupling, invconv, actnorm = block.flows
    actnorm.t.copy_(-step.actnorm.bias.view_as(actnorm.t))
    actnorm.s.copy_(-3 * step.actnorm.log_scale.view_as(actnorm.s))
    for name, value in [
        ("P", step.invconv.permutation), ("sign_S", step.invconv.sign), ("log_S", step.invconv.log_s),
        ("L", step.invconv.lower), ("U", step.invconv.upper),
    ]:  # fmt: skip
        getattr(invconv, name).copy_(value)
    net = step.coupling.net
    conv_in, norm_in, _, conv_mid, norm_mid, _, conv_out = coupling.flows[1].param_map.net
    for conv, mine in ((conv_in, net.conv_in), (conv_mid, net.conv_mid), (conv_out, net.conv_out.conv)):
        conv.weight.copy_(mine.weight)
    conv_out.bias.copy_(net.conv_out.conv.bias)
    for values in (conv_out.weight, conv_out.bias):
        values[0::2] *= -1  # it takes the shift away where we add it
    for norm, mine in ((norm_in.actNorm, net.norm_in), (norm_mid.actNorm, net.norm_mid)):
        norm.s.copy_(3 * mine.log_scale.view_as(norm.s))
        norm.t.copy_((mine.bias * torch.exp(3 * mine.log_scale)).view_as(norm.t))


@MODELS
def test_kinds_of_layers_have_all_multiply_adds(model):
    flow = glow(SHAPE, **model)
    kinds = layer_kinds(flow, 8, "float32")
    assert sum(kind.count * kind.multiply_adds for kind in kinds) == flow.multiply_adds()
    assert len({kind.name for kind in kinds}) == len(kinds)


def test_least_seconds_are_of_what_binds():
    kinds = {kind.name: kind for kind in layer_kinds(glow(SHAPE, **SMALL), 8, "bfloat16")}
    device = {"flops": {"float32": 1e12, "bfloat16": 4e12}, "bytes": 1e9}
    conv = kinds["1x1, 64 to 64, 16x16"]
    assert conv.bytes == 2 * 8 * 256 * 5 * 64 + 3 * 4 * 64 * 64
    assert conv.least_seconds(8, device) == pytest.approx(4 * conv.bytes / 1e9)
    assert conv.is_bound_by_memory(8, device)
    device["bytes"] = 1e15
    assert conv.least_seconds(8, device) == pytest.approx(4 * 6 * 8 * 64 * 64 * 256 / 4e12)
    assert not conv.is_bound_by_memory(8, device)


def test_systems_take_turns_but_none_in_bfloat16_where_the_processor_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "has_bfloat16", lambda device: False)
    words = ["--size", "toy", "--batch", "8", "--systems", "normflows", "fast", "fast-bf16", "--rounds", "2"]
    run.main([*words, "--seconds", "0", "--threads", "1", "--out", str(tmp_path)])
    (case,) = json.loads((tmp_path / "results.json").read_text())["cpu"]["cases"]
    assert [set(each) for each in case["rounds"]] == [{"normflows", "fast"}] * 2
    assert all(rate > 0 for each in case["rounds"] for rate in each.values())
    for name in ("normflows", "fast"):
        started = case["systems"][name]
        assert started["first_step_s"] > 0 and started["bytes"] > 0 and started["reconstruction_error"] is None
    assert sum(case["systems"]["fast"]["multiply_adds"].values()) == glow(SHAPE, **TOY).multiply_adds()
    assert case["limits"]["bytes"] > 0 and set(case["limits"]["flops"]) == {"float32"} == set(case["roofline"])
    text = (tmp_path / "results.md").read_text()
    assert "This processor has no bfloat16 arithmetic: nothing is measured in bfloat16." in text
    assert "| fast-bf16 | not measured: no bfloat16 arithmetic |" in text
    assert "bfloat16 not measured, " in text and "limit, coupling nets in bfloat16" not in text


def test_what_is_added_stands_beside_what_was_measured_before():
    old = synthetic(16, {"a": [1.0, 2.0], "b": [3.0, 4.0]}, {"a": {"n": 1}, "b": {"n": 1}})
    new = synthetic(16, {"b": [5.0], "c": [6.0]}, {"b": {"n": 2}, "c": {"n": 2}})
    other = synthetic(64, {"a": [7.0]}, {"a": {"n": 3}})
    before = {"machine": describe_machine(), "cases": [old]}
    first, second = added(before, [new, other])
    assert first["rounds"] == [{"a": 1.0}, {"a": 2.0}, {"b": 5.0, "c": 6.0}]
    assert first["systems"] == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 2}} and second == other
    with pytest.raises(ValueError, match="another machine"):
        added({**before, "machine": MACHINE}, [new])


def test_a_part_is_trained_alone():
    case = Case("part 1 of 3", {"num_blocks": 2, "num_steps": 2, "width": 8}, 8, "cpu", part=1)
    systems = {"normflows": NORMFLOWS["normflows"], "plain": {}}
    found = measure(case, systems, rounds=1, seconds=0, threads=1, bfloat16=False)
    assert set(found["systems"]) == {"plain"} and found["rounds"][0]["plain"] > 0


@pytest.mark.parametrize("name", PIPEFLOW)
def test_systems_are_options_of_a_run(name):
    Config.from_dict(PIPEFLOW[name])


STARTED = {
    "first_step_s": 1.0, "warm_up_s": 0.5, "num_parameters": 44_000_000, "bytes": 2e9,
    "multiply_adds": {"coupling": 900_000_000, "other": 100_000_000},
}  # fmt: skip


def started(**options) -> dict:
    return {"options": {"precision": options}, **STARTED}


def synthetic(batch_size: int, rates: dict[str, list[float]], systems: dict[str, dict]) -> dict:
    """One case's result, a number a round for each system."""
    rounds = [dict(zip(rates, each)) for each in zip(*rates.values())]
    ways = dict.fromkeys(("float32", "bfloat16", "bytes"), "some way")
    device = {"flops": {"float32": 1e12, "bfloat16": 2e12}, "bytes": 1e11, "ways": ways}
    case = {"size": "published", "model": PUBLISHED, "batch_size": batch_size, "device": "cpu", "part": None}
    return {"case": case, "systems": systems, "rounds": rounds, "limits": device}


def test_table_and_goals():
    systems = {
        "normflows": {**started(), "multiply_adds": None},
        "reference": started(step="reference"),
        "fast": started(step="fast"),
        "fast-bf16": started(step="fast", coupling="bfloat16"),
        "huge": {"options": {}, "out_of_memory": "no room"},
    }
    rates = {"normflows": [10, 20, 10], "reference": [10, 20, 11], "fast": [13, 24, 12], "fast-bf16": [19, 36, 19]}
    row = {"kind": "1x1", "count": 32, "multiply_adds": 5, "bytes": 5, "least_s": 0.1, "bound": "products"}
    result = synthetic(16, rates, systems)
    result["roofline"] = {"float32": [{**row, "reference_s": 0.4, "fast_s": 0.2}]}
    document = {"cpu": {"machine": MACHINE, "command": "the command", "threads": 2, "cases": [result]}}
    text = report(document)
    assert "| fast | 13 (12 to 24) | 1.20 | - | 1.20 | 8% | 8% | 2,000 | 1.00 | 0.50 | 44,000,000 |" in text
    assert "| fast-bf16 | 19 (19 to 36) | 1.90 | - | 1.80 | 6% | - |" in text
    assert "| huge | out of memory |" in text
    assert "float32, at least 1.15 x normflows: 1.20 (fast, 8% of the matrix limit, 8% of the roofline), met." in text
    assert "at least 2 x normflows: 1.90 (fast-bf16, 6% of the matrix limit), missed." in text
    assert "| 1x1 | 32 | products | 100.00 | 400.00 | 200.00 | 50% | 100.0% |" in text
    assert "Not measured: `python -m benchmarks.step.run --device cuda`." in text
    assert "at least 8 x normflows at batch 64: not measured." in text


def test_goals_of_a_gpu():
    systems = {"normflows": {**started(), "multiply_adds": None}, "fast": started(step="fast")}
    results = {
        "published, batch 64": synthetic(64, {"normflows": [500], "fast": [4200]}, systems),
        "published, batch 512": synthetic(512, {"normflows": [600], "fast": [50]}, systems),
    }
    goals = {goal[2]: (*goal[:4], "goal") for goal in GOALS["cuda"]}
    assert judge(goals["ratio"], results).endswith(" of the matrix limit), met")
    assert judge(goals["share"], results) == "goal: 30% (fast, 30% of the matrix limit), met"
    assert judge(goals["epoch"], results) == "goal: 11.9 s (fast, from its images a second), met"


def test_table_of_memory():
    measured = {"machine": MACHINE, "command": "the command", "threads": 2}
    rows = [
        {"num_steps": 8, "way": "keep", "bytes": 4e8, "step_s": 0.2, "reconstruction_error": None},
        {"num_steps": 8, "way": "invert", "bytes": 1e8, "step_s": 0.3, "reconstruction_error": 2e-6},
        {"num_steps": 9, "way": "keep", "out_of_memory": "no room"},
    ]
    text = memory.report({"cpu": {**measured, "rows": rows}})
    assert "| 8 | invert | 100 | 0.25 | 12.50 | 0.3 | 1.50 | 2.0e-06 |" in text
    assert "| 9 | keep | out of memory |" in text
    assert "Not measured: `python -m benchmarks.step.memory --device cuda`." in text
