"""The study of benchmarks/learning at toy size: rates are tried until the best lies between two, then all seeds."""

import json
import math

import pytest
import yaml

from benchmarks.learning import figure
from benchmarks.learning.rows import make_rows
from benchmarks.learning.run import HERE, main, next_rates
from benchmarks.learning.studies import read_studies
from benchmarks.machine import describe_machine
from pipeflow.config import Config

pytestmark = pytest.mark.slow

TOY = {
    "rates": [6.4e-2],
    "seeds": [0, 1],
    "options": {
        "data.num_train": 64, "data.num_test": 16, "model.num_blocks": 2, "model.num_steps": 2, "model.width": 8,
        "schedule.local_epochs": 2, "schedule.finetune_epochs": 0, "optim.batch_size": 32, "eval.num_images": 8,
    },
    "arms": {
        "end to end": {"schedule.mode": "end_to_end"},
        "linear": {"parts.head": "autoregressive"},
        "linear, 1 epoch": {"rate_of": "linear", "parts.head": "autoregressive", "schedule.local_epochs": 1},
        "gaussian": {},
    },
    "studies": {
        "heads": {"title": "Heads", "arms": ["end to end", "linear", "linear, 1 epoch"]},
        "other": {"title": "Another", "arms": ["gaussian"]},
    },
}  # fmt: skip


def test_rates_go_on_until_the_best_is_in_the_middle():
    assert next_rates({1e-3: 4.2, 2e-3: 4.1}) == [4e-3]
    assert next_rates({1e-3: 4.1, 2e-3: 4.2}) == [5e-4]
    assert next_rates({1e-3: 4.2, 2e-3: 4.1, 4e-3: 4.3}) == []
    assert next_rates({0.1: 4.2, 0.2: 4.1}) == []


def test_a_study_is_measured_and_goes_on_where_it_was(tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    words = ["--file", str(tmp_path / "toy.yaml"), "--studies", "heads"]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert main(words) == 0, capsys.readouterr().err
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert {key.split(" | ")[0] for key in runs} == {"end to end", "linear", "linear, 1 epoch"}
    for arm in ("end to end", "linear"):
        of_arm = {tuple(key.split(" | ")[1:]): run for key, run in runs.items() if key.startswith(f"{arm} |")}
        tried = {float(rate): run.get("test_bpd", math.inf) for (rate, seed), run in of_arm.items() if seed == "0"}
        best = min(tried, key=tried.get)
        assert not next_rates(tried) and (f"{best:g}", "1") in of_arm
    assert {key for key in runs if "1 epoch" in key} == {f"linear, 1 epoch | {best:g} | {seed}" for seed in (0, 1)}
    report = (tmp_path / "results.md").read_text()
    print(report)
    assert "](heads.png)" in report and (tmp_path / "heads.png").exists()
    assert report.count("± ") == 3 and "Another" not in report, "a study of which nothing is measured is left out"
    assert report.count(f"| {next(iter(json.loads((tmp_path / 'results.json').read_text())['machines']))} |") == 3
    capsys.readouterr()
    assert main(words) == 0
    assert "runs in" not in capsys.readouterr().out, "nothing was trained again"


def test_a_run_that_fails_of_itself_ends_the_study_and_counts_for_no_rate(tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**TOY, "rates": [1.6e-2]}))
    words = ["--file", str(tmp_path / "toy.yaml"), "--studies", "other", "--data", str(tmp_path / "none.zip")]
    assert main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 1
    assert "error: gaussian | 0.016 | 0: " in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_a_study_that_there_is_not_is_an_error(tmp_path, capsys):
    assert main(["--studies", "heads", "haeds", "--out", str(tmp_path)]) == 1
    assert "--studies haeds: " in (said := capsys.readouterr().err) and "heads, turns" in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rates": ["6e-2"]}, "rates: '6e-2' is none; a rate is written 1.0e-2"),
        ({"rates": []}, "rates: expected values, got []"),
        ({"seeds": None}, "seeds: expected values, got None"),
        ({"studies": {"heads": {"title": "Heads"}}}, "studies: heads has no arms"),
        ({"arms": {"linear": {"rate_of": "nothing"}}}, "'linear' takes the rate of 'nothing'"),
    ],
)
def test_a_file_that_is_no_study_is_an_error(change, said, tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**TOY, **change}))
    assert main(["--file", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_an_error(tmp_path, capsys):
    assert main(["--file", str(tmp_path / "toy.yaml"), "--out", str(tmp_path)]) == 1
    assert "toy.yaml: No such file" in capsys.readouterr().err


def test_an_arm_that_was_changed_does_not_take_the_old_runs(tmp_path, capsys):
    parts = [{"head_macs": 0, "forward_macs": 1}]
    run = {"test_bpd": 4.0, "train_macs": 2, "exit_bpd": None, "bytes": {"forward": [0]}, "parts": parts}
    arms = {arm.name: arm.described() for study in read_studies(TOY) for arm in study.arms}
    old = {"command": "", "machine": describe_machine(), "settings": {"data": None}, "arms": arms}
    (tmp_path / "results.json").write_text(json.dumps({**old, "runs": {"gaussian | 0.01 | 0": run}}))
    changed = {**TOY, "arms": {**TOY["arms"], "gaussian": {"schedule.local_epochs": 1}}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(changed))
    words = ["--file", str(tmp_path / "toy.yaml"), "--studies", "other", "--out", str(tmp_path)]
    assert main(words) == 1
    assert "arm 'gaussian' was measured with" in capsys.readouterr().err
    assert main([*words, "--data", "others.zip"]) == 1
    assert "was measured with {'data': None}" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--device", "cuda", "--out", str(tmp_path)]) == 1
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_a_table_says_what_was_stopped_and_needs_its_first_arm():
    study = read_studies(TOY)[0]
    parts = [{"head_macs": 0, "forward_macs": 1}]
    run = {"test_bpd": 4.0, "train_macs": 2, "exit_bpd": None, "bytes": {"forward": [0]}, "parts": parts}
    values = {
        "machine": {"cpu": "a processor"},
        "runs": {"linear | 0.01 | 0": run, "linear | 0.01 | 1": {"error": "so"}},
    }
    assert make_rows(values, study, [0, 1]) == [], "nothing to compare with"
    values["runs"]["end to end | 0.01 | 0"] = {**run, "test_bpd": 3.5}
    whole, linear = make_rows(values, study, [0, 1])
    assert (whole.bits_in_words(), linear.bits_in_words()) == ("3.500 (1)", "4.000 (1, 1 stopped)")
    assert linear.above == 0.5 and linear.machines == ["a processor"]
    values["runs"]["end to end | 0.01 | 1"] = {**run, "test_bpd": 5.5}
    assert make_rows(values, study, [0, 1])[1].above == 0.5, "of the seed that both have"


def test_a_figure_has_costs_of_all_and_exits_of_what_has_parts():
    study = read_studies({**TOY, "studies": {"s": {"title": "S", "arms": ["end to end", "linear", "gaussian"]}}})[0]
    whole = {"test_bpd": 4.0, "train_macs": 2, "exit_bpd": None, "bytes": {}, "parts": [{"forward_macs": 4}]}
    parts = [{"head_macs": 1, "forward_macs": 2}, {"head_macs": 0, "forward_macs": 3}]
    ours = {**whole, "train_macs": 3, "exit_bpd": [4.4, 4.0], "bytes": {"forward": [0]}, "parts": parts}
    runs = {"end to end | 0.01 | 0": whole, "linear | 0.01 | 0": ours, "gaussian | 0.01 | 0": ours}
    rows = make_rows({"machine": {"cpu": "a processor"}, "runs": runs}, study, [0])
    costs, exits = figure.make("S", rows).axes
    whole_line, *curves = exits.get_lines()
    assert list(whole_line.get_ydata()) == [4.0, 4.0]
    assert [line.get_label() for line in curves] == ["linear", "gaussian"]
    assert [list(line.get_data()[axis]) for line in curves for axis in (0, 1)] == 2 * [[0.25, 1.0], [4.4, 4.0]]
    assert [list(points.lines[0].get_xdata()) for points in costs.containers] == [[1.0], [1.5], [1.5]]


def test_the_studies_own_runs_can_be_made():
    for study in read_studies(yaml.safe_load((HERE / "runs.yaml").read_text())):
        for arm in study.arms:
            sections: dict = {}
            for name, value in arm.at_rate(8e-3).items():
                section, _, key = name.partition(".")
                sections.setdefault(section, {})[key] = value
            config = Config.from_dict(sections)
            assert (
                config.num_epochs == 12 or "epochs" in arm.name or config.schedule.mode in ("sequential", "alternate")
            )
            if arm.part_rates:
                assert len(config.optim.part_lr) == config.num_parts and config.optim.part_lr[-1] == config.optim.lr
