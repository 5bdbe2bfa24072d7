import pytest

from benchmarks.data.run import CASES, measure, report
from tests.benchmarks.pretended import MACHINE

pytestmark = pytest.mark.slow


def test_a_small_set_is_measured(tmp_path):
    measured = measure(tmp_path, num_images=64, num_decoded=40, rounds=1, cases=["all, from the cache"])
    (each,) = measured["memory"].values()
    assert each["peak_bytes"] > 1e8 and each["start_s"] > 0 and each["batch_ms"] > 0
    assert [len(seconds) for seconds in measured["decoding_s"].values()] == [1, 1]


def test_table_and_goal():
    peaks = dict(zip(CASES, (500e6, 590e6, 550e6, 4600e6)))
    memory = {case: {"peak_bytes": peak, "start_s": 4.0, "batch_ms": 1.0} for case, peak in peaks.items()}
    measured = {
        "num_images": 325_521,
        "memory": memory,
        "num_decoded": 20_000,
        "decoding_s": {"1": [9, 8], "2": [4, 5]},
    }
    results = {"machine": MACHINE, "command": "the command", "measured": measured}
    text = report(results)
    assert "325,521 images of 64 x 64 pixels, 4.00 GB" in text
    assert "at most 1.2 of its memory without the images: 1.18, met." in text
    assert "| all, decoded at the start | 2 GB | 590 | 90 | 1.18 | 4 | 1.00 |" in text
    assert "| 2 | 4.0 | 4.5 | 5,000 | 2.00 |" in text
    peaks["all, from the cache"] = memory["all, from the cache"]["peak_bytes"] = 700e6
    assert "without the images: 1.40, missed." in report(results)
