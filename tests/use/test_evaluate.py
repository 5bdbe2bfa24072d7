import json
import shutil

import pytest
import yaml

import pipeflow
from pipeflow.errors import CheckpointError, DataError
from pipeflow.rundir.reading import read_config
from pipeflow.use.evaluate import Evaluation, describe, evaluate


@pytest.fixture
def copy(finished_run, tmp_path):
    """The run once more, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def change_config(folder, section: str, **options) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings[section].update(options)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def test_evaluate_gives_the_summary_to_the_last_bit(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    evaluation = evaluate(finished_run, "cpu")
    assert evaluation.test_bpd == summary["test_bpd"] == evaluation.summary_bpd
    assert evaluation.test_bpd != summary["test_bpd_raw"]  # the averaged weights are those that are saved
    assert (evaluation.num_images, evaluation.device) == (64, "cpu")


def test_evaluate_groups_its_sums_as_a_run_that_ended_in_parts_did(finished_run, tmp_path):
    settings = read_config(finished_run).to_dict()
    settings["run"]["dir"] = str(tmp_path / "parts")
    settings["schedule"]["finetune_epochs"] = 0
    settings["data"]["num_train"] = 48
    summary = pipeflow.train(pipeflow.Config.from_dict(settings))
    assert evaluate(tmp_path / "parts", "cpu").test_bpd == summary.test_bpd


def test_an_evaluation_is_one_line():
    same = Evaluation(test_bpd=4.1234567, summary_bpd=4.1234567, num_images=10_000, device="cpu")
    assert describe(same).startswith("test 4.123457 bits/dim on 10,000 images (cpu); summary.json: the same to the ")
    other = Evaluation(test_bpd=4.5, summary_bpd=4.25, num_images=1, device="cuda")
    assert describe(other) == "test 4.500000 bits/dim on 1 image (cuda); summary.json: 4.250000 (+2.5e-01 here)"


@pytest.mark.parametrize("file", ["summary.json", "model.safetensors"])
def test_a_run_that_has_not_ended_is_an_error(copy, file):
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match="has not ended"):
        evaluate(copy)


def test_images_of_another_shape_are_an_error(copy, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_images.py").write_text(
        "import torch\ndef images(options):\n    return [torch.zeros(200, 3, 16, 16, dtype=torch.uint8)] * 2\n"
    )
    change_config(copy, "data", name="small_images:images")
    with pytest.raises(DataError, match=r"\[3, 32, 32\].*\[3, 16, 16\]"):
        evaluate(copy)


def test_what_was_given_from_python_is_an_error(copy):
    change_config(copy, "data", name="python")
    with pytest.raises(DataError, match="from Python"):
        evaluate(copy)
    change_config(copy, "model", name="python")
    with pytest.raises(CheckpointError, match="from Python"):
        evaluate(copy)
