"""A trained flow whose density is given the label: samples by class, bits/dim of images and of classes, wrong labels."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pipeflow
from pipeflow import load_flow
from pipeflow.cli import main
from pipeflow.errors import CheckpointError, DataError
from pipeflow.use.evaluate import describe, evaluate
from tests.labelled import CLASSES, images, shifted_glow
from tests.small_runs import small_config

DATA = images()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a small Glow with a top prior by label."""
    folder = tmp_path_factory.mktemp("labels") / "run"
    schedule = {"mode": "end_to_end", "local_epochs": 4, "finetune_epochs": 0}
    model = {"num_blocks": 1, "num_steps": 1, "width": 4, "num_classes": 3}
    config = small_config(folder, schedule=schedule, model=model, optim={"lr": 0.05})
    pipeflow.train(config, data=DATA)
    return folder


@pytest.fixture(scope="module")
def trained(run):
    return load_flow(run, device="cpu")


def test_the_file_keeps_the_classes(run, trained, tmp_path):
    assert (trained.num_classes, trained.classes) == (3, CLASSES)
    shutil.copy(run / "model.safetensors", tmp_path / "moved.safetensors")
    moved = load_flow(tmp_path / "moved.safetensors", device="cpu")
    assert (moved.num_classes, moved.classes) == (3, CLASSES)
    checkpoint = load_flow(run / "checkpoints" / "epoch-000004", device="cpu")
    assert (checkpoint.num_classes, checkpoint.classes) == (3, CLASSES)


def test_a_file_that_names_other_classes_than_its_flow_has_is_damaged(run, tmp_path):
    tensors = load_file(run / "model.safetensors")
    with safe_open(run / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    for names in ('["a", "b"]', "[1, 2, 3]", '["a", "b", "\\u001b[2J"]', '{"a": 1}'):
        save_file(tensors, tmp_path / "other.safetensors", {**metadata, "classes": names})
        with pytest.raises(CheckpointError, match="damaged or of another model: it.* classes"):
            load_flow(tmp_path / "other.safetensors")


def test_samples_are_of_the_classes_that_are_asked_for(run, trained):
    """Brightness tells the class; without labels they are of all classes in turn, as the run's own."""
    samples = trained.sample(30, labels=["light", 0])
    light, dark = (each.float().mean() for each in (samples[::2], samples[1::2]))
    assert light > dark + 20
    in_turn = trained.sample(64)
    assert torch.equal(in_turn[:30:3], trained.sample(30, labels=torch.arange(30) % 3)[::3])
    assert not torch.equal(in_turn[:30], trained.sample(30, labels="grey"))
    width, height = Image.open(run / "samples.png").size
    assert height == 9 * (3 * 8 + 2) - 2 and width > 8 * (3 * 8 + 2), "three rows of 8 for each class, behind its name"


def test_densities_are_given_the_label(trained):
    x = (DATA.test + 0.5) / 256 - 0.5
    by_number, by_name = (trained.log_prob(x, labels=each) for each in (DATA.test_labels, [*CLASSES] * 13 + ["dark"]))
    assert torch.equal(by_number, by_name) and torch.equal(by_number, trained.flow.log_prob(x, DATA.test_labels))
    right, wrong = (trained.bits_per_dim(DATA.test, labels=(DATA.test_labels + shift) % 3) for shift in (0, 1))
    assert right.mean() < wrong.mean()
    one_by_one = trained.bits_per_dim(DATA.test, batch_size=7, labels=DATA.test_labels)
    torch.testing.assert_close(one_by_one, right)
    latents = trained.encode(DATA.test[:2])
    assert torch.equal(trained.decode(latents), DATA.test[:2]), "a top prior has no part in it"


def test_evaluate_tells_classes_apart(run, trained):
    found = evaluate(run, "cpu", data=DATA)
    assert found.test_bpd == found.summary_bpd
    each = trained.bits_per_dim(DATA.test, batch_size=32, labels=DATA.test_labels)
    for label, by_class in enumerate(found.by_class):
        own = each[DATA.test_labels == label]
        assert (by_class.name, by_class.num_images) == (CLASSES[label], len(own))
        assert by_class.test_bpd == pytest.approx(own.mean().item(), abs=1e-9)
    first, *others = describe(found).splitlines()
    assert "bits/dim given the label on 40 images (cpu)" in first and len(others) == 3
    assert others[1] == f"  grey   {found.by_class[1].test_bpd:.6f} bits/dim on 13 images"


def test_images_with_other_labels_or_none_are_not_the_run_s(run):
    with pytest.raises(DataError, match="their labels differ"):
        evaluate(run, "cpu", data=images(shuffled=True))
    with pytest.raises(DataError, match="density is given the label, but the images of bare have no labels"):
        evaluate(run, "cpu", data=pipeflow.ImageData(DATA.train, DATA.test, "bare"))


@pytest.mark.parametrize(
    "labels, says",
    [
        ("gray", r"'gray' is not one of the classes dark, grey, light or 0 to 2 \('grey' is meant\?\)"),
        (3, "3 is not one of the classes"),
        (-1, "-1 is not one of the classes"),
        (True, "True is not one of the classes"),
        ([0, 1.5, 2], "1.5 is not one of the classes"),
        (torch.zeros(3), "0.0 is not one of the classes"),
        ({"dark"}, "labels are a set: give whole numbers or names"),
    ],
)
def test_labels_that_cannot_be(trained, labels, says):
    for use in (trained.bits_per_dim, lambda images, labels: trained.sample(len(images), labels=labels)):
        with pytest.raises(DataError, match=says):
            use(DATA.test[:3], labels=labels)


def test_as_many_labels_as_images(trained, finished_run):
    with pytest.raises(DataError, match="2 for 3 images"):
        trained.bits_per_dim(DATA.test[:3], labels=[0, 1])
    with pytest.raises(DataError, match=r"given the label: give labels=.*dark, grey, light or 0 to 2"):
        trained.bits_per_dim(DATA.test[:3])
    with pytest.raises(DataError, match="the list is empty"):
        trained.sample(3, labels=[])
    with pytest.raises(DataError, match="takes none: its density is not given the label"):
        load_flow(finished_run, device="cpu").sample(3, labels=0)


def test_layers_that_take_labels_need_them_to_encode(tmp_path):
    config = small_config(tmp_path, schedule={"mode": "end_to_end", "local_epochs": 1, "finetune_epochs": 0})
    pipeflow.train(config, flow=shifted_glow(config, (3, 8, 8)), data=DATA)
    trained = load_flow(tmp_path, flow=shifted_glow, device="cpu")
    labels = DATA.test_labels[:4]
    assert torch.equal(trained.decode(trained.encode(DATA.test[:4], labels=labels), labels=labels), DATA.test[:4])
    assert torch.equal(trained.interpolate(DATA.test[0], DATA.test[3], num=3, label="dark")[0], DATA.test[0])
    with pytest.raises(DataError, match="given the label: give labels"):
        trained.encode(DATA.test[:4])


def test_sample_by_name_or_number_on_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(["sample", str(run), "--num", "4", "--label", "light", "--label", "0", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"4 samples of 2 classes, temperature 0.7, seed 0: {out}\n"
    assert Image.open(out).size[1] == 2 * (3 * 8 + 2) - 2
    assert main(["sample", str(run), "--label", "lihgt"]) == 1
    assert (
        "'lihgt' is not one of the classes dark, grey, light or 0 to 2 ('light' is meant?)" in capsys.readouterr().err
    )
