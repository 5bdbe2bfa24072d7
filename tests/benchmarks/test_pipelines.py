"""The baselines of benchmarks/pipelines: each computes what the whole flow in one process does, and counts what it sends.

Two processes run them all, one after the other; this file is their program too.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.pipelines import systems, worker  # noqa: E402
from benchmarks.pipelines.launch import launch  # noqa: E402
from pipeflow.config import Config, load  # noqa: E402
from pipeflow.data import Batches, load_data  # noqa: E402
from pipeflow.flow import Part, build_flow, cut_names, split_flow  # noqa: E402

pytestmark = pytest.mark.slow
BATCH_SIZE, MICRO_BATCHES, STEPS, WARMUP = 8, 4, 4, 2
PIPELINES = ["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble"]
RUNS = {
    **{name: ("--system", name) for name in PIPELINES},
    "gpipe": ("--system", "gpipe", "--evaluate"),
    "1f1b_bf16": ("--system", "1f1b", "--compress", "bf16"),
    "ddp": ("--system", "ddp", "--evaluate"),
    "ddp_bf16": ("--system", "ddp", "--compress", "bf16"),
    "ddp_powersgd": ("--system", "ddp", "--compress", "powersgd", "--power-rank", "1"),
    "local_sgd": ("--system", "local_sgd", "--period", "2", "--evaluate"),
}
CONFIG = {
    "run": {"device": "cpu"},
    "data": {"num_train": 32, "num_test": 16},
    "model": {"num_blocks": 2, "num_steps": 2, "width": 8},
    "parts": {"split": "balanced", "num": 2},
    "optim": {"batch_size": BATCH_SIZE, "warmup_steps": 1, "decay": "none", "lr": 1e-3},
}


def arguments(name: str, config_path: Path, out: Path) -> argparse.Namespace:
    """The worker's options of one of RUNS."""
    settings = ["--config", str(config_path), "--steps", str(STEPS), "--warmup", str(WARMUP), "--out", str(out)]
    return worker.parse_arguments([*RUNS[name], "--micro-batches", str(MICRO_BATCHES), *settings])


def program(config_path: Path, out: Path) -> None:
    """One of the two processes: for each system its gradients on the first batch, then its measured run."""
    torch.set_num_threads(1)
    config = load(str(config_path))
    device, found = worker.connect(config), {}
    for name in RUNS:
        options = arguments(name, config_path, out)
        system, per_epoch = worker.build(options, config, device)
        loss = system.step(0, 0, 0.0)  # a rate of 0 leaves the weights as they are
        gradients = [parameter.grad.clone() for parameter in system.parameters]
        torch.save(
            [None if loss is None else float(loss), gradients], out / f"{name}.{torch.distributed.get_rank()}.pt"
        )
        found[name] = worker.train(system, options, config, per_epoch)
        if options.evaluate:
            system.prepare_evaluation()
            found[name]["test_bpd"] = system.evaluate()
            found[name]["sum"] = float(sum(parameter.double().sum() for parameter in system.parameters))
    (out / f"found{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which two processes have run all baselines."""
    folder = tmp_path_factory.mktemp("pipelines")
    config_path = folder / "config.yaml"
    config_path.write_text(json.dumps(CONFIG))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
               f"import test_pipelines as t; t.program(t.Path({str(config_path)!r}), t.Path({str(folder)!r}))"]  # fmt: skip
    launch(systems.SYSTEMS["ddp"], command, folder, world_size=2, threads=1, timeout_s=120)
    return folder


@pytest.fixture(scope="module")
def whole() -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of the first batch, of the whole flow in this process."""
    config = Config.from_dict(CONFIG)
    batches = Batches(load_data(config.data), 0, BATCH_SIZE, False)
    part = split_flow(build_flow(config, batches.data.shape), [])[0]
    part.initialize(batches.initial())
    loss = part.loss(part(batches.train(0, 0)))
    loss.backward()
    return float(loss.detach()) + 8, [parameter.grad for parameter in part.parameters()]


def first_step(out: Path, name: str) -> tuple[list[float], list[list[torch.Tensor]]]:
    """Losses and gradients of the two processes in their first step."""
    saved = [torch.load(out / f"{name}.{rank}.pt") for rank in range(2)]
    return [loss for loss, _ in saved if loss is not None], [gradients for _, gradients in saved]


def found(out: Path, name: str) -> list[dict]:
    """The measurements of the two processes."""
    return [json.loads((out / f"found{rank}.json").read_text())[name] for rank in range(2)]


def stages(name: str) -> list[tuple[Part, int]]:
    """A pipeline's parts of the flow, each with its worker."""
    owners = worker.KINDS[name].owners(2)
    flow = build_flow(Config.from_dict(CONFIG), (3, 32, 32))
    return list(zip(split_flow(flow, cut_names(flow, "balanced", len(owners))), owners))


def in_flow_order(name: str, gradients: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """The stages' gradients, put together as the flow has them."""
    parts = stages(name)
    left, ordered = [iter(each) for each in gradients], []
    for part, owner in parts:
        modules = [part.layers, part.head] if part.index == len(parts) - 1 else [part.layers]
        ordered += [next(left[owner]) for module in modules for _ in module.parameters()]
    return ordered


@pytest.mark.parametrize("name", [*PIPELINES, "ddp"])
def test_loss_and_gradients_are_the_whole_flows(name, out, whole):
    losses, gradients = first_step(out, name)
    assert sum(losses) / len(losses) == pytest.approx(whole[0], abs=1e-6)
    # Stages of one worker lie in stage order in its parameters, which for a V is the flow's order too.
    for flow in gradients if name == "ddp" else [in_flow_order(name, gradients)]:
        for mine, theirs in zip(flow, whole[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def crossing_bytes(name: str, element_size: int) -> int:
    """Bytes of an epoch by formula: latents and densities over the cuts that lie between workers."""
    crossing = [part for (part, here), (_, there) in itertools.pairwise(stages(name)) if here != there]
    return sum(32 * (torch.Size(part.output_shape).numel() * element_size + 8) for part in crossing)


@pytest.mark.parametrize(("name", "element_size"), [*((name, 4) for name in PIPELINES), ("1f1b_bf16", 2)])
def test_a_pipeline_sends_latents_forward_and_as_much_back(name, element_size, out):
    ranks = found(out, name)
    expected = crossing_bytes(name.removesuffix("_bf16"), element_size)
    assert sum(rank["sent_forward_bytes"] for rank in ranks) == expected
    assert sum(rank["sent_backward_bytes"] for rank in ranks) == expected


def test_data_parallel_sends_what_the_ring_does(out, whole):
    # Of two workers each sends as many bytes as it reduces: 4 steps of an epoch.
    num_values = sum(gradient.numel() for gradient in whole[1])
    assert [rank["sent_backward_bytes"] for rank in found(out, "ddp")] == [4 * 4 * num_values] * 2
    assert [rank["sent_backward_bytes"] for rank in found(out, "ddp_bf16")] == [4 * 2 * num_values] * 2
    # Averages behind every second of the four measured steps.
    assert [rank["sent_backward_bytes"] for rank in found(out, "local_sgd")] == [2 * 4 * num_values] * 2


def test_power_sgd_compresses_in_the_measured_steps(out):
    plain, compressed = found(out, "ddp"), found(out, "ddp_powersgd")
    assert 0 < compressed[0]["sent_backward_bytes"] < 0.6 * plain[0]["sent_backward_bytes"]
    assert compressed[0]["losses"][-1] == pytest.approx(plain[0]["losses"][-1], abs=0.1)


def test_a_pipeline_evaluates_the_flow_that_is_spread_over_its_workers(out):
    # It trains what DDP trains: the same images, updates and rates; bfloat16 is on the wire of neither.
    bpd = [rank["test_bpd"] for rank in found(out, "gpipe")]
    assert bpd[0] == bpd[1] == pytest.approx(found(out, "ddp")[0]["test_bpd"], abs=1e-4)


def test_a_whole_run_has_its_warm_up_in_it(out):
    for rank in found(out, "ddp"):
        assert rank["run_backward_bytes"] == rank["sent_backward_bytes"] * (STEPS + WARMUP) / STEPS
        assert rank["run_seconds"] > rank["seconds"]


def test_local_sgd_ends_with_one_model(out):
    first, second = found(out, "local_sgd")
    assert first["sum"] == second["sum"]
    assert first["test_bpd"] == second["test_bpd"] == pytest.approx(found(out, "ddp")[0]["test_bpd"], abs=0.1)


@pytest.mark.parametrize("name", list(RUNS))
def test_every_system_trains_and_is_busy_for_part_of_the_time(name, out):
    for rank in found(out, name):
        assert 0 < rank["busy_seconds"] <= rank["seconds"]
        assert rank["peak_memory"] > 1e8
        assert all(torch.isfinite(torch.tensor(rank["losses"])))
