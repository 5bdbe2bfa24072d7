import dataclasses
import io
import math

import pytest
from rich.console import Console

from pipeflow.report.figures import bytes_by_phase, plots
from pipeflow.report.table import report
from tests.run_records import ALTERNATE, GATHER, epochs, summary, write


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


def write_edge(folder, name: str):
    records, gather = EDGES[name]
    return write(folder / name, records, bytes=summary("", records, gather).bytes)


@pytest.mark.parametrize("name", EDGES)
def test_a_run_at_the_edge_is_drawn(tmp_path, name):
    assert all(path.is_file() for path in plots(write_edge(tmp_path, name)))


def test_runs_at_the_edge_are_compared(tmp_path):
    folders = [write_edge(tmp_path, name) for name in EDGES]
    assert len(report(folders, tmp_path, Console(file=io.StringIO()))) == 4
