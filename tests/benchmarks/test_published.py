"""The published rows: their epochs, the table that they make, and slices that stop and go on."""

import dataclasses
import json
from pathlib import Path

import pytest

import pipeflow
from benchmarks.published import run
from benchmarks.published.report import table, write_report
from benchmarks.published.results import SettingsDiffer, check_settings, measure, merge, verdicts
from benchmarks.published.rows import CONFIGS, ROWS, Settings, equal_epochs, launch_arguments, table_lines
from benchmarks.published.slices import Leg, Slice
from pipeflow.config import load
from pipeflow.errors import CheckpointError, ConfigError
from pipeflow.rundir.records import Summary
from pipeflow.sweep.pool import STARTED
from tests.benchmarks.pretended import MACHINE
from tests.small_runs import assert_same_tensors, small_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EQUAL = {
    "across2_lr1e-4": 64, "concurrent_balanced3": 90, "across3_lr1e-5": 58, "alternate_balanced3": 57,
    "concurrent_across2": 90, "sequential_across3": 58, "alternate_blocks3": 61, "concurrent_across3": 90,
    "linear_across2": 90, "linear_across3": 90,
}  # fmt: skip
TINY = {
    "data.name": "dead_leaves", "data.num_train": "96", "data.num_test": "40", "model.num_steps": "2",
    "model.width": "8", "optim.batch_size": "32",
}  # fmt: skip


@pytest.mark.parametrize(
    "scale, epochs", [(1, (60, 30)), (0.5, (30, 15)), (0.2, (12, 6)), (0.01, (6, 3)), (2, (120, 60))]
)
def test_scale_keeps_whole_cycles(scale, epochs):
    settings = Settings(scale=scale)
    assert settings.num_epochs == sum(epochs)
    for row in ROWS.values():
        config = settings.config(row)
        assert config.num_epochs == sum(epochs)
        if row.head == "gaussian":
            assert config.num_local_epochs == (epochs[0] if row.rival else 0)
        else:  # a tenth of the epochs end to end
            assert config.num_local_epochs == sum(epochs) - round(sum(epochs) / 10)


def test_published_rows_are_their_configurations():
    for row in ROWS.values():
        if row.bits_per_dim is None:
            continue
        published, ours = load(str(CONFIGS / f"{row.config}.yaml")), Settings().config(row)
        schedule = ours.schedule
        if row.rival is None:  # stops on its way, so all its epochs are end-to-end ones
            schedule = dataclasses.replace(schedule, local_epochs=60, finetune_epochs=30)
        assert dataclasses.replace(ours, schedule=schedule) == published, row.name


def test_equal_multiply_adds_at_full_size():
    equal = equal_epochs(Settings())
    assert abs(equal["across2_lr1e-4"] - 63) <= 1 and abs(equal["across3_lr1e-5"] - 58) <= 1
    assert equal == EQUAL
    assert equal_epochs(Settings(scale=0.2))["across3_lr1e-5"] == 12  # 0.64 of 18


def test_lines_have_a_stop_for_each_row():
    names = [line.name for line in table_lines(Settings(), EQUAL)]
    assert names[:6] == ["glow_lr1e-4", *(f"glow_lr1e-4@{epochs}" for epochs in (30, 57, 58, 61, 64))]
    assert names[6:11] == [
        "across2_lr1e-4", "concurrent_balanced3", "glow_lr1e-5", "glow_lr1e-5@30", "glow_lr1e-5@58"
    ]  # fmt: skip
    assert len(names) == len(ROWS) + 7


def test_what_rows_set_cannot_be_set_for_all():
    with pytest.raises(ConfigError, match=r"--set optim\.decay"):
        Settings(overrides={"optim.decay": "cosine"})


def numbers(bpd: float, cpu_seconds: float, **changes) -> dict:
    """Numbers of a line that has ended."""
    return {
        "num_epochs": 90, "ended": True, "test_bpd": bpd, "num_images": None, "exit_bpd": None, "macs": 100 * cpu_seconds,
        "seconds": 10 * cpu_seconds, "cpu_seconds": cpu_seconds, "forward": [2_000_000, 1_000_000], "jobs": 2,
        "threads": 1, "machine": MACHINE,
    } | changes  # fmt: skip


def test_verdicts_and_table():
    measured = {
        "glow_lr1e-4": numbers(3.600, 600),
        "glow_lr1e-4@64": numbers(3.610, 430),
        "across2_lr1e-4": numbers(3.615, 420),
        "glow_lr1e-5": numbers(3.890, 600),
        "glow_lr1e-5@58": numbers(3.920, 380),
        "across3_lr1e-5": numbers(3.915, 390),
        "concurrent_balanced3": numbers(4.5, 100, ended=False, num_epochs=12, num_images=2000, error="rose to 9"),
    }
    answers = verdicts(measured, EQUAL, 90)
    assert answers["reproduced"] == [
        "across2_lr1e-4: yes: +0.015 bits/dim against end to end (at most +0.02), 0.70 of its time (at most 0.72)",
        "across3_lr1e-5: no: +0.025 bits/dim against end to end (at most +0.02), 0.65 of its time (at most 0.66)",
    ]
    assert answers["beats"] == [
        "across2_lr1e-4, against 64 epochs end to end: no, behind by 0.005 bits/dim",
        "across3_lr1e-5, against 58 epochs end to end: yes, by 0.005 bits/dim",
    ]
    text = table(table_lines(Settings(), EQUAL), measured, EQUAL, Settings())
    split = [line.removeprefix("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    rows = {cells[0]: cells for cells in split}
    assert rows["across2_lr1e-4"][5:13] == ["90", "3.615", "+0.015", "+0.005", "0.70", "7.0", "0.70", "2, 1"]
    assert rows["glow_lr1e-4@64"][7:9] == ["+0.010", "-"]
    assert rows["concurrent_balanced3"][5:10] == ["12 of 90", "~4.500", "-", "-", "-"]
    assert rows["alternate_blocks3"][6] == "not measured"
    assert "Stopped by itself: concurrent_balanced3: rose to 9" in text


def test_times_of_different_machines_do_not_compare():
    gpu = {**MACHINE, "gpu": "some"}
    measured = {"glow_lr1e-4": numbers(3.6, 600, machine=gpu), "across2_lr1e-4": numbers(3.6, 420)}
    assert "time not measured on one machine" in verdicts(measured, EQUAL, 90)["reproduced"][0]
    measured["across2_lr1e-4"] = numbers(3.6, 600, seconds=3000, machine=gpu)  # on a GPU the clock counts
    assert "0.50 of its time" in verdicts(measured, EQUAL, 90)["reproduced"][0]
    assert "3.6" not in verdicts({}, EQUAL, 90)["beats"][0] and "not measured" in verdicts({}, EQUAL, 90)["beats"][0]


def test_what_has_come_further_stays():
    before = {"a": numbers(3.6, 1), "b": numbers(3.7, 1, ended=False, num_epochs=5)}
    now = {"a": numbers(4.0, 1, ended=False, num_epochs=30), "b": numbers(3.5, 1, ended=False, num_epochs=6)}
    merged = merge(before, now)
    assert merged["a"]["test_bpd"] == 3.6 and merged["b"]["test_bpd"] == 3.5


def test_other_settings_do_not_mix(tmp_path):
    check_settings(tmp_path / "settings.json", Settings(scale=0.2))
    check_settings(tmp_path / "settings.json", Settings(scale=0.2))
    with pytest.raises(SettingsDiffer, match="--runs and --out"):
        check_settings(tmp_path / "settings.json", Settings(scale=0.2, overrides={"optim.ema": "0.9"}))


def test_stops_on_the_way_change_nothing(tmp_path):
    def train(name: str, epochs: int) -> Summary:
        schedule = {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": epochs}
        return pipeflow.train(small_config(tmp_path / name, schedule=schedule, optim={"decay": "none"}))

    whole = train("whole", 3)
    stop, end = train("stops", 1), train("stops", 3)
    assert_same_tensors(tmp_path / "whole", tmp_path / "stops")
    assert end.test_bpd == whole.test_bpd and end.train_macs == whole.train_macs == 3 * stop.train_macs


def tiny_leg(settings: Settings, row: str, runs: Path) -> Leg:
    arguments = launch_arguments(ROWS[row], None, settings.options(ROWS[row]))
    return Leg(row=row, epochs=settings.num_epochs, runs=runs, arguments=arguments)


def test_a_slice_stops_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = Settings(size="small", scale=0.2, overrides=TINY)
    leg = tiny_leg(settings, "across2_lr1e-4", tmp_path / "runs")
    lines = table_lines(settings, equal_epochs(settings))

    def run_slice(is_over) -> dict:
        assert Slice(jobs=1, num_threads=1, is_over=is_over).run({leg.row: [leg]}) == {}
        measured, curves = measure(lines, settings, leg.runs)
        write_report(lines, measured, curves, EQUAL, settings, tmp_path)
        return measured[leg.row]

    first = run_slice(lambda: any((leg.folder / "checkpoints").glob("epoch-??????")))
    assert 1 <= first["num_epochs"] < 18 and not first["ended"]
    assert f"| {first['num_epochs']} of 18 | ~" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "glow_lr1e-4" / "compare_by_macs.png").exists()
    for _ in range(2):  # the second time, nothing is left
        second = run_slice(lambda: False)
        assert second["ended"] and second["num_epochs"] == 18 and "resuming after" in leg.log.read_text()
    assert leg.log.read_text().count(STARTED) == 2


def test_a_row_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = Settings(size="small", scale=0.1, overrides={**TINY, "data.num_train": "8"})
    leg = tiny_leg(settings, "glow_lr1e-4", tmp_path)
    errors = Slice(jobs=1, num_threads=1, is_over=lambda: False).run({leg.row: [leg]})
    assert "optim.batch_size" in errors[leg.row]
    assert not leg.kept.exists()


def test_a_summary_of_another_length_is_not_kept(tmp_path):
    leg = tiny_leg(Settings(), "glow_lr1e-4", tmp_path)
    leg.folder.mkdir()
    (leg.folder / "summary.json").write_text(json.dumps({"num_epochs": 64}))
    with pytest.raises(CheckpointError, match="has 64 epochs"):
        leg.keep()


def test_the_command_ends_well_when_the_minutes_are_too_few(tmp_path, capsys):
    words = ["--size", "small", "--scale", "0.1", "--rows", "across3_lr1e-5", "--minutes", "0"]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert run.main(words) == 0
    assert "left: across3_lr1e-5 (0 of 9 epochs)" in capsys.readouterr().out
    assert "not measured" in (tmp_path / "results.md").read_text()
    assert run.main([*words, "--set", "optim.ema=0.9"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
