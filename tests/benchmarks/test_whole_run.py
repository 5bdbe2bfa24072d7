"""Whole runs: settings that the planner chooses, verdicts from rows, and toy runs of which each is kept at once."""

import json

import pytest
import yaml

from benchmarks.whole_run.choose import Planner, at_rate
from benchmarks.whole_run.report import Measured, verdicts, write_report
from benchmarks.whole_run.run import main, make_jobs, parse
from benchmarks.whole_run.systems import ONE, SYSTEMS, Setting, num_steps, warmup_steps
from pipeflow.config import Config
from pipeflow.plan.predict.machines import Machines
from tests.benchmarks.pretended import MACHINE

pytestmark = pytest.mark.slow

CONFIG = Config.from_dict({
    "data": {"num_train": 1280, "num_test": 64},
    "model": {"num_steps": 4, "width": 64},
    "parts": {"split": "balanced", "num": 3},
    "schedule": {"local_epochs": 4, "finetune_epochs": 2},
})  # fmt: skip


def planner(rate: float | None) -> Planner:
    """Three workers on probed links of 10 Gbit/s, and on slower ones."""
    probed = Machines(workers=3, flops=1e11, bandwidth=1e10, reduce_bandwidth=8e9, latency=1e-5)
    return Planner(CONFIG, at_rate(probed, rate), [2, 4, 8])


def test_fewer_bits_are_chosen_where_the_link_holds_up_and_only_there():
    fast, _ = planner(None).choose(SYSTEMS["pipeflow_pipeline"])
    slow, seconds = planner(20).choose(SYSTEMS["pipeflow_pipeline"])
    assert fast.options["link.dtype"] == fast.options["finetune.gradient_dtype"] == "float32"
    assert (slow.options["link.dtype"], slow.options["finetune.gradient_dtype"]) == ("int8", "bfloat16")
    assert slow.options["parts.split"].count(",") == 1 and slow.options["parts.num"] == 3
    single, alone = planner(20).choose(SYSTEMS["pipeflow_single"])
    assert single.options["link.dtype"] == "int8" and not any(name.startswith("finetune.") for name in single.options)
    assert seconds != alone
    # torch's 1F1B needs a micro-batch for each stage.
    assert slow.options["finetune.schedule"] == "gpipe" or slow.options["finetune.micro_batches"] >= 3


def test_rivals_are_predicted_with_their_own_bytes():
    at_20 = planner(20)
    two = Setting({"micro_batches": 2})
    plain, half = (at_20.predict(SYSTEMS[name], two) for name in ("gpipe", "gpipe_bf16"))
    assert 0.45 * plain < half < 0.7 * plain
    assert at_20.predict(SYSTEMS["ddp"], Setting()) > at_20.estimate(SYSTEMS["ddp_bf16"])
    assert at_20.predict(SYSTEMS["ddp_powersgd"], Setting()) is None
    assert at_20.estimate(SYSTEMS["gpipe"]) <= plain
    assert at_20.predict(SYSTEMS[ONE], Setting()) == planner(None).predict(SYSTEMS[ONE], Setting())
    assert planner(None).machines.reduce_bandwidth == 8e9 and at_20.machines.reduce_bandwidth is None


def test_a_rival_trains_as_many_steps_and_systems_take_turns():
    assert (num_steps(CONFIG), warmup_steps(CONFIG)) == (6 * 20, 12)
    options = parse(["--only", "gpipe", ONE, "--rate", "none", "20", "--rounds", "2"])
    assert [job.key for job in make_jobs(options)] == [
        "gpipe | rate none | round 0", f"{ONE} | round 0", "gpipe | rate 20 | round 0",
        "gpipe | rate none | round 1", f"{ONE} | round 1", "gpipe | rate 20 | round 1",
    ]  # fmt: skip


def row(system: str, rate: str, seconds: float, bpd: float, predicted: float | None = None, round: int = 0) -> dict:
    """A row as run.py writes it."""
    return {
        "system": system, "rate": rate, "round": round, "workers": 3, "options": {}, "predicted": predicted,
        "seconds": seconds, "test_bpd": bpd, "forward": 2e6, "backward": 1e6, "gathered": 0,
    }  # fmt: skip


def results(*rows: dict) -> dict:
    """results.json in which the planner names fine-tuning in a pipeline at every rate."""
    return {
        "machine": MACHINE,
        "command": "the command",
        "settings": {"data": "cifar10.zip", "num_train": 4992, "num_test": 2000, "local": 4, "finetune": 2, "seed": 0,
                     "config": {}},
        "choices": {rate: {"best": "pipeflow_pipeline"} for rate in ("none", "100", "20")},
        "rows": {str(index): each for index, each in enumerate(rows)},
    }  # fmt: skip


def test_goals_are_told_from_measured_rows_alone(tmp_path):
    document = results(
        row(ONE, "none", 100, 4.5),
        row("pipeflow_pipeline", "100", 50, 4.51, 45),
        row("pipeflow_single", "100", 10, 4.51, 100),
        row("gpipe", "100", 90, 4.5, 90),
        row("gpipe_bf16", "100", 80, 4.5, round=0),
        row("1f1b", "100", 84, 4.5, 80),
        row("1f1b_bf16", "100", 85, 4.5),
        row("local_sgd", "100", 40, 4.505),
        row("pipeflow_pipeline", "20", 60, 4.53, 60),
        row("pipeflow_pipeline", "20", 80, 4.53, 60, 1),
        row("gpipe", "20", 133, 4.5, 133),
        row("ddp_powersgd", "20", 40, 4.8),
    )
    assert list(verdicts(Measured(document))) == [
        "Without a limit: speed beside the fastest pipeline (goal 1): not measured.",
        "At 100 Mbit/s: pipeflow, pipeline is 1.60 times as fast as torch GPipe, bfloat16 wire, the fastest pipeline "
        "(goal 1.5): met.",
        "At 100 Mbit/s: it ends +0.010 bits/dim from end to end on one worker (at most +0.02): met.",
        "At 100 Mbit/s: data parallelism wins: torch post-local SGD takes 40 s against 50 s, at 4.505 against 4.510 "
        "bits/dim.",
        "At 20 Mbit/s: pipeflow, pipeline is 1.90 times as fast as torch GPipe, the fastest pipeline of the 1 "
        "measured so far (goal 2): MISSED.",
        "At 20 Mbit/s: it ends +0.030 bits/dim from end to end on one worker (at most +0.02): MISSED.",
        "Predictions: 5 of 6 are within 15%; the worst is +900%, pipeflow, single, at 100 Mbit/s: MISSED.",
    ]
    write_report(document, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert (
        "| pipeflow, pipeline, the planner's choice | 3 | - | 70.0 | 0.53 | 60.0 | -14% | 4.530 | +0.030 | 2.0 |"
        in text
    )
    assert "| torch DDP | - | - | not measured |" in text


@pytest.mark.root
def test_toy_runs_are_kept_one_by_one(tmp_path, capsys):
    config = tmp_path / "toy.yaml"
    config.write_text(
        yaml.safe_dump({"model": {"num_blocks": 2, "num_steps": 2, "width": 8}, "optim": {"batch_size": 16}})
    )
    sizes = (
        "--local 1 --finetune 1 --num-train 64 --num-test 20 --probe-seconds 0 --workers 2 --micro-batches 2 --rate 200"
    )
    words = [*sizes.split(), "--config", str(config), "--out", str(tmp_path)]

    def rows() -> dict[str, dict]:
        return json.loads((tmp_path / "results.json").read_text())["rows"]

    assert main([*words, "--only", "pipeflow_pipeline", "gpipe", "--estimate"]) == 0
    assert "2 runs: about" in capsys.readouterr().out and rows() == {}
    assert main([*words, "--only", "pipeflow_pipeline"]) == 0
    assert list(rows()) == ["pipeflow_pipeline | rate 200 | round 0"]
    assert main([*words, "--only", "pipeflow_pipeline", "gpipe", "ddp_powersgd", ONE]) == 0
    assert "1 of 4 runs are there" in capsys.readouterr().out
    found = {row["system"]: row for row in rows().values()}
    ours, gpipe, one = (found[name] for name in ("pipeflow_pipeline", "gpipe", ONE))
    assert gpipe["test_bpd"] == pytest.approx(one["test_bpd"], abs=1e-4)
    assert found["ddp_powersgd"]["test_bpd"] == pytest.approx(one["test_bpd"], abs=0.05)
    assert gpipe["forward"] == gpipe["backward"] > ours["backward"] > 0 == ours["gathered"] == one["forward"]
    assert sum(gpipe["wire"]) > gpipe["forward"] + gpipe["backward"]
    assert all(each["seconds"] > 0 for each in found.values())
    assert "pipeflow, pipeline" in (tmp_path / "results.md").read_text()
    assert main([*words, "--num-test", "30"]) == 1  # other settings do not mix
    assert "choose another --out" in capsys.readouterr().err
