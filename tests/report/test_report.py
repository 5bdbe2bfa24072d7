import csv
import dataclasses
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeflow.errors import CheckpointError
from pipeflow.report.colors import color_of, dash_of
from pipeflow.report.command import report
from pipeflow.report.costs import bytes_by_phase
from pipeflow.report.curves import AXES, alone, exit_curves, sent, spans
from pipeflow.report.curves import test_curve as whole_flow_curve
from pipeflow.report.figures import plots
from pipeflow.report.page import render
from pipeflow.report.runs import read_runs
from pipeflow.report.table import phases
from pipeflow.rundir.reading import SavedRun, read_run
from pipeflow.rundir.records import EpochBytes, GivenLabel
from tests.run_records import ALTERNATE, GATHER, epochs, summary, write, write_log


def printed(run_dirs, width: int = 160, **options) -> str:
    console = Console(file=io.StringIO(), width=width)
    report(run_dirs, console=console, **options)
    return console.file.getvalue()


# Reading


def test_a_run_that_has_not_ended_is_put_together_from_its_log(tmp_path):
    folder = write_log(tmp_path / "live", ALTERNATE, ("gather", {"bytes": GATHER, "seconds": 0.5}))
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"event": "epo')  # half a line, as it may be while the run writes
    total = 6000 + 3000 + 250 + 1200 + 600 + 25
    so_far = summary("live", test_bpd=ALTERNATE[-1].test_bpd, exit_bpd=ALTERNATE[2].exit_bpd)
    so_far = dataclasses.replace(so_far, wire=True, bytes=dataclasses.replace(so_far.bytes, finetune=600, total=total))
    assert read_run(folder) == SavedRun(summary=so_far, ended=False)
    assert read_run(write(tmp_path / "a")) == SavedRun(summary=summary("a"), ended=True)


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "run.dir"),
        ({"summary.json": "{"}, "summary.json.*damaged"),
        ({"metrics.jsonl": '{"event": "start", "initial_bpd": 7, "parts": []}\n{"ev\n'}, "line 2.*damaged"),
        ({"metrics.jsonl": ""}, "no line yet of a run that began"),
        ({"run.lock": ""}, "no results yet: its run is starting, or failed to start"),
    ],
)
def test_what_is_no_run_is_an_error_the_user_can_act_on(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*{words}|{words}.*{tmp_path}"):
        read_run(tmp_path)


def test_what_cannot_be_read_is_named_and_the_rest_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [])
    for name in ("empty", "started"):
        (tmp_path / name).mkdir()
    (tmp_path / "started" / "run.lock").touch()
    write(tmp_path / "good")
    (tmp_path / "report.html").touch()  # as `runs/*` has it among the runs
    assert "3 alternate + 2 finetune" in printed(sorted(tmp_path.iterdir()))
    skipped = capsys.readouterr().err.splitlines()
    assert [line[: len(f"skipped: {tmp_path}/e")] for line in skipped] == [f"skipped: {tmp_path}/{x}" for x in "es"]
    with pytest.raises(CheckpointError, match="none of the 2 folders"):
        printed([tmp_path / "empty", tmp_path / "started"])


def test_a_page_that_cannot_be_written_names_the_option(tmp_path):
    folder = write(tmp_path / "a")
    with pytest.raises(CheckpointError, match="summary.json: .*a folder that can be written to, name one with --out"):
        printed([folder], out=folder / "summary.json")


# What the curves are made of


def test_the_gather_lies_between_the_local_epochs_and_finetune():
    ends = {
        "epoch": [1, 2, 3, 3, 4, 5],
        "seconds": [2, 4, 6, 6.5, 8.5, 10.5],
        "bytes": [3000, 6000, 9000, 10200, 10500, 10800],
        "macs": [1e9, 2e9, 3e9, 3e9, 4e9, 5e9],
    }
    for axis in AXES:
        lengths = spans(summary("a"), AXES[axis])
        assert [end for _, _, end in lengths] == ends[axis]
        assert [record is None for record, _, _ in lengths] == [False] * 3 + [True] + [False] * 2


def test_curves_begin_before_training_and_skip_epochs_without_evaluation():
    silent = dataclasses.replace(ALTERNATE[1], test_bpd=None, exit_bpd=None)
    endless = dataclasses.replace(ALTERNATE[2], test_bpd=math.inf)
    run = summary("a", (ALTERNATE[0], silent, endless, *ALTERNATE[3:]))
    x, bpd = whole_flow_curve(run, AXES["epoch"])
    assert x == [0, 1, 3, 4, 5]
    assert whole_flow_curve(run, AXES["bytes"])[0] == [0, 3000, 9000, 10500, 10800]
    np.testing.assert_array_equal(bpd, [7.0, 6.0, math.nan, 5.7, 5.6])
    assert exit_curves(run, AXES["epoch"]) == [([1, 3], [7.0, 6.8]), ([1, 3], [6.5, 6.3])]


def test_phases_in_words():
    assert phases(summary("a")) == "3 alternate + 2 finetune"
    assert phases(summary("a", ())) == "none yet"


def test_an_axis_has_the_unit_that_suits_its_largest_value():
    assert AXES["bytes"].unit(0) == (1, "bytes") and AXES["bytes"].unit(5e9) == (1e9, "GB")
    assert AXES["seconds"].unit(100) == (1, "seconds") and AXES["seconds"].unit(130) == (60, "minutes")


# The table and the figures


@pytest.mark.parametrize("axis", AXES)
def test_no_curve_is_a_vertical_line(axis):
    """Where nothing is sent, epochs stand at one point, and the last of them counts."""
    silent = tuple(
        dataclasses.replace(each, bytes=EpochBytes(latents=(), eval=0, gradients=0, control=0)) for each in ALTERNATE
    )
    for records in (silent, (*ALTERNATE[:3], *silent[3:])):
        run = summary("a", records, gather={"parameters": 0, "optimizer": 0})
        for costs, values in [whole_flow_curve(run, AXES[axis]), *exit_curves(run, AXES[axis])]:
            drawn = [(cost, value) for cost, value in zip(costs, values) if not math.isnan(value)]
            assert all(before < after for (before, _), (after, _) in zip(drawn, drawn[1:]))
        costs, values = whole_flow_curve(run, AXES[axis])
        assert values[-1] == ALTERNATE[-1].test_bpd
        by_itself = ([costs[-1]], [values[-1]]) if axis == "bytes" else ([], [])
        assert alone((costs, values)) == by_itself


def test_no_two_runs_have_one_colour():
    assert len({color_of(index) for index in range(300)}) == 300
    styles = {(color_of(index), dash_of(index)) for index in range(300)}
    assert len(styles) == 300 and {dash for _, dash in list(styles)} == {"solid", "dashed", "dotted", "dotdash"}


def test_one_run_is_a_row_a_page_and_a_picture_in_its_folder(tmp_path):
    folder = write(tmp_path / "a")
    text = printed([folder])
    for cell in ("3 alternate + 2 finetune", "5.550", "6.800 6.300 5.800", "10.5 s", "5.00e09", "12.3"):
        assert cell in text
    assert sorted(path.name for path in folder.iterdir()) == ["bpd_by_epoch.png", "report.html", "summary.json"]
    printed([folder], png=True)
    figures = sorted(path.name for path in folder.glob("*.png"))
    assert figures == ["bpd_by_bytes.png", "bpd_by_epoch.png", "bpd_by_seconds.png", "bytes_by_phase.png"]
    for name in figures:
        with Image.open(folder / name) as image:
            assert image.width >= 1000


def test_several_runs_have_a_page_where_they_lie_and_never_in_the_current_folder(tmp_path, monkeypatch):
    folders = [write(tmp_path / "runs" / place / "same_name", ALTERNATE[:1]) for place in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    text = printed(["runs/a/same_name", "runs/b/same_name"], width=300)
    assert all(
        str(folder.relative_to(tmp_path)) in text for folder in folders
    )  # the names alone would not tell them apart
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"a", "b", "report.html", "compare_by_epoch.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert all([path.name for path in folder.iterdir()] == ["summary.json"] for folder in folders)
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(CheckpointError, match="is the current one: name a folder for the page with --out"):
        printed(folders)
    printed(folders, out=tmp_path / "out", png=True)
    names = sorted(path.stem for path in (tmp_path / "out").iterdir())
    assert names == ["compare_by_bytes", "compare_by_epoch", "compare_by_macs", "compare_by_seconds", "report"]


def test_without_an_argument_all_runs_below_runs_are_reported_newest_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="runs/ has no runs: name the folders of runs"):
        report()
    for age, name in enumerate(["old", "sweep/middle", "new"]):
        folder = write(tmp_path / "runs" / name)
        os.utime(folder / "summary.json", (1e9 + age, 1e9 + age))
    (tmp_path / "runs" / "new" / "checkpoints").mkdir()
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [folder / str([*runs])])
    assert report() == [Path("runs/['new', 'middle', 'old']")]


def test_programs_get_everything_as_json_and_epochs_as_csv(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [])
    endless = dataclasses.replace(ALTERNATE[0], test_bpd=math.nan, idle=(0.25, 0.5), rate={"0": 0.1})
    folders = [write(tmp_path / "a", (endless, *ALTERNATE[1:])), write_log(tmp_path / "b", ALTERNATE[:2])]
    report(folders, json="-")
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["ended"], first["folder"]) == ("a", True, str(folders[0]))
    assert first["epochs"][0]["test_bpd"] == "nan" and second["num_epochs"] == 2 and not second["ended"]
    with pytest.raises(CheckpointError, match=r"^--csv: .*nowhere/runs.csv: No such file or directory: name a file"):
        report(folders, csv=str(tmp_path / "nowhere" / "runs.csv"))
    report(folders, csv=str(tmp_path / "runs.csv"))
    rows = list(csv.DictReader(open(tmp_path / "runs.csv")))
    assert [(row["run"], row["epoch"]) for row in rows] == [*(("a", str(n)) for n in range(5)), ("b", "0"), ("b", "1")]
    one = {
        "idle.1": "0.5",
        "rate.0": "0.1",
        "trained": "0",
        "bytes.latents.0": "2000",
        "exit_bpd.2": "6.0",
        "train_loss.flow": "",
    }
    assert {name: rows[0][name] for name in one} == one
    assert rows[3]["train_loss.flow"] == "1.0" and math.isnan(float(rows[0]["test_bpd"]))


def test_a_narrow_console_loses_nothing_and_a_run_that_has_not_ended_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [])  # takes most of the time
    text = printed([write(tmp_path / "a_name_that_is_rather_long")], width=60)
    for cell in ("a_name_that_is_rather_long", "3 alternate + 2 finetune", "6.800 6.300 5.800", "12.3"):
        assert cell in text
    text = printed([write_log(tmp_path / "live", ALTERNATE[:2])])
    assert "5.900*" in text and "has not ended" in text


@pytest.mark.parametrize("wire, note", [(True, None), (False, "MB of b: would travel"), (None, None)])
def test_a_single_process_sends_nothing(tmp_path, monkeypatch, wire, note):
    drawn = []
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: drawn.append(runs) or [])
    text = printed([write(tmp_path / "a", wire=True), write(tmp_path / "b", wire=wire)])
    assert (note in text) if note else ("travel" not in text)
    assert sent(run.saved.summary for run in drawn[0].values()) == ("sent or would travel" if note else "sent")
    assert ("MB: would travel" in printed([write(tmp_path / "c", wire=wire)])) == (wire is False)


@pytest.mark.parametrize("others, note", [(["plain"], "bits/dim of classes: given"), ([], "bits/dim: given")])
def test_bits_per_dim_given_the_label_are_told_from_others(tmp_path, monkeypatch, others, note):
    monkeypatch.setattr("pipeflow.report.command.write_page", lambda runs, folder, png: [])
    given = GivenLabel(num_classes=3, classes=("a", "b", "c"), fingerprint="0")
    runs = [write(tmp_path / "classes", given_label=given), *(write(tmp_path / name) for name in others)]
    assert f"{note} the label, but for exits of parts before the first that takes labels" in printed(runs)
    units = ["bits/dim given the label", *["bits/dim"] * len(others)]
    assert [read_run(run).summary.unit for run in runs] == units


def test_bytes_by_phase_count_everything_once():
    by_phase = bytes_by_phase(summary("a"))
    local = {"latents 0 → 1": 2000, "latents 1 → 2": 1000, "evaluation": 50, "control": 5}
    assert by_phase == {
        **{f"alternate: part {part}": local for part in (0, 1, 2)},
        "gather": {"gather: parameters": 400, "gather: optimizer": 800},
        "fine-tuning": {"gradients": 600, "evaluation": 100, "control": 10, "images handed out": 100},
    }


EDGES = {
    "no_epoch": ((), {}),
    "no_bytes": (epochs([("concurrent", [0, 1, 2])], latents=0), {}),
    "not_a_number": (
        tuple(dataclasses.replace(each, test_bpd=math.nan, exit_bpd=(math.nan,) * 3) for each in ALTERNATE[:2]),
        GATHER,
    ),
    "more_parts_than_colours": (epochs([("sequential", [part]) for part in range(12)]), GATHER),
}


def test_runs_at_the_edge_are_drawn_and_compared(tmp_path):
    folders = [
        write(tmp_path / name, records, bytes=summary("", records, gather).bytes)
        for name, (records, gather) in EDGES.items()
    ]
    for folder in folders:
        assert all(path.is_file() for path in plots(read_run(folder), folder))
        assert "Test bits/dim" in render(read_runs([folder]))
    printed(folders, out=tmp_path, png=True)
    assert len(list(tmp_path.glob("*.png"))) == 4 and "4 runs" in (tmp_path / "report.html").read_text()
