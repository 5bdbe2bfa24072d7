import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipeflow.errors import CheckpointError, PipeflowError
from pipeflow.metrics import MetricsLog, to_json
from pipeflow.report import (
    AXES, bytes_by_phase, duration, exit_curves, phases, plots, read_run, report, sample_grid, size, spans,
)  # fmt: skip
from pipeflow.report import test_curve as whole_flow_curve  # a test_ name that pytest is not to collect

GATHER = {"parameters": 400, "optimizer": 800, "ema": 0}


def epochs(schedule: list[tuple[str, list[int]]], latents: int = 1000) -> list[dict]:
    result = []
    for number, (phase, trained) in enumerate(schedule):
        local = phase != "finetune"
        bpd = 6.0 - 0.1 * number
        result.append({
            "epoch": number, "phase": phase, "trained": trained, "steps": 4,
            "train_loss": {str(part): 1.0 for part in trained},
            "test_bpd": bpd, "exit_bpd": [bpd + 1, bpd + 0.5, bpd] if local else None,
            "seconds": 2.0, "images": 100, "macs": 1e9,
            "bytes": {
                "latents": [[0, 1, 2 * latents], [1, 2, latents]] if local else [],
                "eval": 50, "gradients": 0 if local else 300, "control": 5,
            },
        })  # fmt: skip
    return result


ALTERNATE = epochs([("alternate", [part]) for part in (0, 1, 2)] + [("finetune", [0, 1, 2])] * 2)


def summary(name: str, records: list[dict], gather: dict | None = None) -> dict:
    gather = GATHER if gather is None else gather
    forward = [sum(r["bytes"]["latents"][link][2] for r in records if r["bytes"]["latents"]) for link in (0, 1)]
    return {
        "name": name, "test_bpd": 5.55, "initial_bpd": 7.0, "exit_bpd": [6.8, 6.3, 5.8], "epochs": records,
        "num_epochs": len(records), "parts": [{}, {}, {}], "train_macs": 1e9 * len(records),
        "seconds": {"gather": 0.5},
        "bytes": {
            "forward": forward, "backward": [0, 0], "eval": 50 * len(records), "gather": gather, "finetune": 700,
            "control": 5 * len(records), "total": 12_345_678,
        },
    }  # fmt: skip


def write(folder, records: list[dict] = ALTERNATE, **changes):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(to_json({**summary(folder.name, records), **changes}))
    return folder


def write_log(folder, records: list[dict], *more: tuple[str, dict]):
    folder.mkdir()
    log = MetricsLog(folder)
    log.event("start", initial_bpd=7.0, parts=[{}, {}, {}])
    for record in records:
        log.event("epoch", **record)
    for kind, fields in more:
        log.event(kind, **fields)
    log.close()
    return folder


def printed(run_dirs, width: int = 160, **options) -> str:
    console = Console(file=io.StringIO(), width=width)
    report(run_dirs, console=console, **options)
    return console.file.getvalue()


# Reading


def test_a_run_that_ended_is_its_summary(tmp_path):
    run = read_run(write(tmp_path / "a"))
    assert run.pop("ended") is True
    assert run == summary("a", ALTERNATE)


def test_a_run_that_has_not_ended_is_put_together_from_its_log(tmp_path):
    folder = write_log(tmp_path / "live", ALTERNATE, ("gather", {"bytes": GATHER, "seconds": 0.5}))
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"event": "epo')  # half a line, as it may be while the run writes
    run, ended = read_run(folder), summary("live", ALTERNATE)
    assert run["ended"] is False
    assert (run["test_bpd"], run["exit_bpd"]) == (ALTERNATE[-1]["test_bpd"], ALTERNATE[2]["exit_bpd"])
    for key in ("name", "epochs", "num_epochs", "parts", "train_macs", "initial_bpd", "seconds"):
        assert run[key] == ended[key]
    assert run["bytes"] == {
        "forward": [6000, 3000], "backward": [0, 0], "eval": 250, "gather": GATHER, "finetune": 600, "control": 25,
        "total": 6000 + 3000 + 250 + 1200 + 600 + 25,
    }  # fmt: skip


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "run.dir"),
        ({"summary.json": "{"}, "summary.json.*damaged"),
        ({"metrics.jsonl": '{"event": "start", "initial_bpd": 7}\n{"ev\n'}, "line 2.*damaged"),
        ({"metrics.jsonl": ""}, "no start"),
    ],
)
def test_what_is_no_run_is_an_error_the_user_can_act_on(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=words) as raised:
        read_run(tmp_path)
    assert isinstance(raised.value, PipeflowError) and str(tmp_path) in str(raised.value)


# What the curves are made of


def test_the_gather_lies_between_the_local_epochs_and_finetune(tmp_path):
    run = read_run(write(tmp_path / "a"))
    assert [end for _, _, end in spans(run, AXES["epoch"])] == [1, 2, 3, 3, 4, 5]
    assert [end for _, _, end in spans(run, AXES["seconds"])] == [2, 4, 6, 6.5, 8.5, 10.5]
    assert [end for _, _, end in spans(run, AXES["bytes"])] == [3000, 6000, 9000, 10200, 10500, 10800]
    assert [end for _, _, end in spans(run, AXES["macs"])] == [1e9, 2e9, 3e9, 3e9, 4e9, 5e9]
    assert [record is None for record, _, _ in spans(run, AXES["epoch"])] == [False] * 3 + [True] + [False] * 2


def test_curves_begin_before_training_and_skip_epochs_without_evaluation(tmp_path):
    records = [dict(record) for record in ALTERNATE]
    records[1].update(test_bpd=None, exit_bpd=None)
    records[2].update(test_bpd=math.inf)
    run = read_run(write(tmp_path / "a", records))
    x, bpd = whole_flow_curve(run, AXES["epoch"])
    assert x == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(bpd, [7.0, 6.0, math.nan, 5.7, 5.6])
    assert exit_curves(run, AXES["epoch"]) == [([1, 3], [7.0, 6.8]), ([1, 3], [6.5, 6.3])]


def test_phases_in_words():
    assert phases({"epochs": ALTERNATE}) == "3 alternate + 2 finetune"
    assert phases({"epochs": []}) == "none yet"


def test_bytes_by_phase_count_everything_once(tmp_path):
    by_phase = bytes_by_phase(read_run(write(tmp_path / "a")))
    local = {"latents 0 → 1": 2000, "latents 1 → 2": 1000, "evaluation": 50, "control": 5}
    assert by_phase == {
        **{f"alternate: part {part}": local for part in (0, 1, 2)},
        "gather": {"gather: parameters": 400, "gather: optimizer": 800},
        "fine-tuning": {"gradients": 600, "evaluation": 100, "control": 10, "images handed out": 100},
    }


def test_units_suit_the_values():
    assert [duration(seconds) for seconds in (45.12, 200, 7500)] == ["45.1 s", "3 min 20 s", "2 h 05 min"]
    assert [size(count) for count in (0, 120, 24_600_000)] == ["0 bytes", "120 bytes", "24.6 MB"]
    assert AXES["bytes"].unit(0) == (1, "bytes") and AXES["bytes"].unit(5e9) == (1e9, "GB")
    assert AXES["seconds"].unit(100) == (1, "seconds") and AXES["seconds"].unit(130) == (60, "minutes")


# The table and the figures


def test_one_run_is_a_row_and_four_figures_in_its_folder(tmp_path):
    folder = write(tmp_path / "a")
    text = printed([folder])
    for cell in ("3 alternate + 2 finetune", "5.550", "6.800 6.300 5.800", "10.5 s", "5.00e09", "12.3"):
        assert cell in text
    figures = sorted(path.name for path in folder.glob("*.png"))
    assert figures == ["bpd_by_bytes.png", "bpd_by_epoch.png", "bpd_by_seconds.png", "bytes_by_phase.png"]
    for name in figures:
        with Image.open(folder / name) as image:
            assert image.width >= 1000


def test_several_runs_are_compared_in_figures_of_their_own(tmp_path):
    folders = [write(tmp_path / place / "same_name") for place in ("a", "b")]
    text = printed(folders, width=300, out=tmp_path / "out")
    assert all(str(folder) in text for folder in folders)  # the names alone would not tell them apart
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["compare_by_bytes.png", "compare_by_epoch.png", "compare_by_macs.png", "compare_by_seconds.png"]
    assert not list(folders[0].glob("*.png"))


def test_a_narrow_console_loses_nothing(tmp_path):
    text = printed([write(tmp_path / "a_name_that_is_rather_long")], width=60)
    for cell in ("a_name_that_is_rather_long", "3 alternate + 2 finetune", "6.800 6.300 5.800", "12.3"):
        assert cell in text


def test_a_run_that_has_not_ended_is_marked(tmp_path):
    text = printed([write_log(tmp_path / "live", ALTERNATE[:2])])
    assert "5.900*" in text and "has not ended" in text


EDGES = {
    "no_epoch": ([], {}),
    "one_epoch": (epochs([("concurrent", [0, 1, 2])]), GATHER),
    "no_bytes": (epochs([("concurrent", [0, 1, 2])] * 2, latents=0), {}),
    "not_a_number": (
        [{**record, "test_bpd": math.nan, "exit_bpd": [math.nan] * 3} for record in ALTERNATE[:2]],
        GATHER,
    ),  # fmt: skip
    "more_parts_than_colours": (epochs([("sequential", [part]) for part in range(12)]), GATHER),
}


def write_edge(folder, name: str):
    records, gather = EDGES[name]
    return write(folder / name, records, bytes=summary("", records, gather)["bytes"])


@pytest.mark.parametrize("name", EDGES)
def test_a_run_at_the_edge_is_drawn(tmp_path, name):
    assert all(path.is_file() for path in plots(write_edge(tmp_path, name)))


def test_runs_at_the_edge_are_compared(tmp_path):
    folders = [write_edge(tmp_path, name) for name in EDGES]
    assert len(report(folders, tmp_path, Console(file=io.StringIO()))) == 4
    silent = [folders[2], write_edge(tmp_path / "again", "no_bytes")]
    paths = report(silent, tmp_path, Console(file=io.StringIO()))
    assert [path.name[:8] for path in paths] == ["compare_"] * 4


# Samples


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid_puts_every_image_in_its_place(tmp_path, channels):
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, channels, 4, 6) * 20
    sample_grid(images, tmp_path / "grid.png", columns=3)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 12 + 2, 3 * 18 + 4) + ((3,) if channels == 3 else ())
    for index in range(5):
        top, left = index // 3 * 14, index % 3 * 20
        assert (grid[top : top + 12, left : left + 18] == 20 * index).all()
    assert (grid[12:14] == 255).all() and (grid[:, 18:20] == 255).all() and (grid[14:, 40:] == 255).all()


def test_sample_grid_keeps_rows_columns_and_colours(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 5, 7), dtype=np.uint8)
    sample_grid(image, tmp_path / "grid.png")
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(grid[1::3, 1::3], image[0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_sample_grid_refuses_what_is_no_images(tmp_path, images):
    with pytest.raises(ValueError, match="uint8"):
        sample_grid(images, tmp_path / "grid.png")


def test_to_json_round_trips_a_summary(tmp_path):
    assert json.loads(to_json(summary("a", ALTERNATE), indent=1)) == summary("a", ALTERNATE)
