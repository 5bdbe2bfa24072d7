import json

import pytest

from pipeflow.cli import main

MACHINES = ("--workers", "3", "--link", "100 Mbit/s", "--latency", "0.1 ms", "--flops", "1e11")


def plan(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", "--data.num_train", "640", "--model.num_steps", "2", *arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_machines_bring_the_table_and_the_advice(capsys, tmp_path):
    figure = tmp_path / "seconds.png"
    code, out, err = plan(capsys, *MACHINES, "--plot", str(figure), "--json", str(tmp_path / "plan.json"))
    assert (code, err) == (0, "")
    assert "bytes a batch" in out and "By seconds of an epoch that trains everything" in out
    assert figure.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert {each["system"] for each in found["predictions"]} == {
        "end_to_end", "concurrent", "alternate", "sequential", "gpipe", "1f1b", "ddp", "ddp, batch a worker",
    }  # fmt: skip
    assert found["recommendation"]["verdict"] in ("pipeflow", "data parallelism", "pipeline", "one worker")
    assert max(map(len, out.splitlines())) <= 80


def test_one_worker_needs_no_speeds_and_json_on_standard_output_is_all_there_is(capsys):
    code, out, _ = plan(capsys, "--workers", "1")
    assert code == 0 and "speed not given" in out
    code, out, _ = plan(capsys, "--workers", "1", "--json", "-")
    assert code == 0 and json.loads(out)["machines"]["workers"] == 1


def test_without_the_speed_of_links_nothing_is_recommended(capsys):
    code, out, _ = plan(capsys, "--workers", "3")
    text = " ".join(out.split())
    assert code == 0 and "links not given: as if they took no time" in text
    assert "No recommendation: these ways send from 0 bytes to " in text and "By seconds of an epoch" not in text
    assert "--link '1 Gbit/s' --flops 50e12" in text


def test_a_file_of_machines(capsys, tmp_path):
    (tmp_path / "machines.yaml").write_text("workers: 2\nflops: 50e12\nbandwidth: 1 Gbit/s\nmemory: 80 GB\n")
    code, out, _ = plan(capsys, "--machines", str(tmp_path / "machines.yaml"), "--workers", "3", "--phases")
    assert code == 0 and "3 workers, 50 TFLOP/s each, links of 1 Gbit/s, 0 s, 80 GB each" in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--workers", "none"), "workers: expected a whole number"),
        (("--workers", "3", "--flops", "1e12"), "--link '1 Gbit/s'"),
        (("--json", "plan.json"), "describe machines too"),
        (("--workers", "1", "--plot", "plan.png"), "2 workers or more"),
        (("--probe", "--flops", "1e12"), "--probe measures"),
    ],
)
def test_wrong_inputs_are_one_line(capsys, arguments, words):
    code, _, err = plan(capsys, *arguments)
    assert code == 1 and err.startswith("error: ") and words in err and err.count("\n") == 1
