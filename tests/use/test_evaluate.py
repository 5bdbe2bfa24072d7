import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import pipeflow
from pipeflow.errors import CheckpointError, DataError
from pipeflow.flow import Values
from pipeflow.rundir.reading import read_config
from pipeflow.use.evaluate import Evaluation, describe, evaluate


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
    about = {"source": Path("model.safetensors"), "values": Values((3, 32, 32))}
    same = Evaluation(**about, test_bpd=4.1234567, summary_bpd=4.1234567, num_images=10_000, device="cpu")
    assert describe(same).startswith("test 4.123457 bits/dim on 10,000 images (cpu); summary.json: the same to the ")
    other = Evaluation(**about, test_bpd=4.5, summary_bpd=4.25, num_images=1, device="cuda")
    assert describe(other) == "test 4.500000 bits/dim on 1 image (cuda); summary.json: 4.250000 (+2.5e-01 here)"
    table = {**about, "values": Values((2,), is_float=True)}
    floats = Evaluation(**table, test_bpd=-0.5, summary_bpd=-0.5, num_images=3, device="cpu")
    assert describe(floats).startswith("test -0.500000 bits/dim, -0.693147 nats an item on 3 items (cpu); summary.json")


def test_of_a_run_that_has_not_ended_it_is_that_of_its_newest_checkpoint(copy):
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").unlink()
    newest = evaluate(copy, "cpu")
    assert newest.source == copy / "checkpoints" / "epoch-000002"
    assert newest.test_bpd == pytest.approx(summary["test_bpd"], abs=1e-9) and newest.summary_bpd is None
    assert describe(newest).endswith(f"bits/dim on 64 images (cpu); {newest.source}")
    before = evaluate(copy / "checkpoints" / "epoch-000001", "cpu")
    assert before.test_bpd == pytest.approx(summary["epochs"][0]["test_bpd"], abs=1e-9)


def test_images_of_another_shape_are_an_error(copy, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_images.py").write_text(
        "import torch\ndef images(options):\n    return [torch.zeros(200, 3, 16, 16, dtype=torch.uint8)] * 2\n"
    )
    change_config(copy, "data", name="small_images:images")
    with pytest.raises(DataError, match=r"\[3, 32, 32\].*\[3, 16, 16\].*--data PATH"):
        evaluate(copy)


@pytest.fixture
def moved(tmp_path):
    """Images in a folder, and a run trained on them there; the images are elsewhere now."""
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        part = tmp_path / "before" / ("train" if index < 8 else "test")
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(part / f"{index}.png")
    settings = {
        "run": {"dir": str(tmp_path / "run"), "device": "cpu", "figures": False},
        "data": {"name": "images", "path": str(tmp_path / "before")},
        "model": {"num_blocks": 2, "num_steps": 1, "width": 4},
        "parts": {"split": "blocks", "num": 2},
        "optim": {"batch_size": 4},
        "schedule": {"local_epochs": 1, "finetune_epochs": 0},
    }
    pipeflow.train(pipeflow.Config.from_dict(settings))
    (tmp_path / "before").rename(tmp_path / "after")
    return tmp_path


def test_images_that_were_moved_are_named_and_others_are_refused(moved):
    remedy = r"If they moved, say where .* --data PATH on the command line, evaluate\(path, data=\.\.\.\) in Python"
    for path, data, gone in (
        ("run", None, "before"),
        ("run/model.safetensors", None, "before"),
        ("run", "gone", "gone"),
    ):
        with pytest.raises(DataError, match=f"cannot be loaded: .*there is no {moved}/{gone};.*{remedy}"):
            evaluate(moved / path, "cpu", data=data and moved / data)
    again = evaluate(moved / "run", "cpu", data=moved / "after")
    assert again.test_bpd == again.summary_bpd
    Image.new("RGB", (8, 8)).save(moved / "after" / "test" / "9.png")
    with pytest.raises(
        DataError, match=f"images of {moved}/after are not those of .*contents.*--data PATH.*bits_per_dim"
    ):
        evaluate(moved / "run", "cpu", data=moved / "after")


def test_fewer_images_than_the_run_took_are_not_the_run_s(copy, moved):
    change_config(copy, "data", name="images", path=str(moved / "before"))
    with pytest.raises(DataError, match=f"the images of {moved}/after are not those of .*fewer.*--data PATH") as caught:
        evaluate(copy, "cpu", data=moved / "after")
    assert "num_train" not in str(caught.value)


def test_a_model_file_by_itself_needs_images(moved):
    alone = (moved / "run" / "model.safetensors").rename(moved / "alone.safetensors")
    with pytest.raises(DataError, match=r"does not tell of any images.*data=ImageData.*--data PATH"):
        evaluate(alone, "cpu")
    summary = json.loads((moved / "run" / "summary.json").read_text())
    found = evaluate(alone, "cpu", data=moved / "after")
    assert found.test_bpd == pytest.approx(summary["test_bpd"], abs=1e-9) and found.summary_bpd is None


def test_what_was_given_from_python_is_given_again(train_own, noise, tmp_path):
    def make():
        return pipeflow.glow((2, 4, 4), num_blocks=1, num_steps=1, width=4)

    run = train_own(tmp_path / "run", make(), noise)
    with pytest.raises(CheckpointError, match=r"flow was given from Python.*flow=.*--flow module:function"):
        evaluate(run, "cpu")
    with pytest.raises(DataError, match=r"images were given from Python.*data=ImageData.*--data PATH"):
        evaluate(run, "cpu", flow=make)
    again = evaluate(run, "cpu", data=noise, flow=make())
    assert again.test_bpd == again.summary_bpd
    with pytest.raises(DataError, match="not those of the run"):
        evaluate(run, "cpu", data=pipeflow.ImageData(noise.train, noise.test + 1, "other"), flow=make())
