"""The Python example of the page about using a trained flow, as it is written."""

from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "use.md"


def test_the_example_runs_on_a_finished_run(finished_run, tmp_path, monkeypatch, capsys):
    example = PAGE.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert torch.equal(names["between"][0], names["images"][0]) and names["samples"].shape == (64, 3, 32, 32)
    said = capsys.readouterr().out
    assert "<TrainedFlow of runs/quickstart/model.safetensors on " in said and said.count("\n") < 10
