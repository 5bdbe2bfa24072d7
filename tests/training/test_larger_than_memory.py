"""Whole runs whose images stay on the disk: the bits of those with images in memory, whoever reads them."""

import pytest

from pipeflow import train
from pipeflow.data import dead_leaves
from pipeflow.use.evaluate import evaluate
from tests.data.test_images import encode, write_folder
from tests.small_runs import assert_same_tensors, learned, small_config, train_in_turn

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path, monkeypatch) -> dict:
    """The section `data`: a folder of 136 images, with a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [f"train/{i:02}.png" for i in range(96)] + [f"test/{i:02}.png" for i in range(40)]
    pixels = zip(paths, dead_leaves(136, seed=0).permute(0, 2, 3, 1).numpy())
    path = write_folder(tmp_path / "source", {path: encode(image) for path, image in pixels})
    return {"name": "images", "path": path, "num_train": None, "num_test": None, "flip": True}


def test_a_run_from_the_disk_is_the_run_from_memory(images, tmp_path, capfd):
    def config(name: str, memory: str):
        return small_config(tmp_path / name, data={**images, "memory": memory})

    train(config("memory", "2 GB"))
    assert "read from the disk" not in capfd.readouterr().out
    train(config("disk", "100 kB"))
    assert "418 kB of images are more than data.memory (100 kB)" in capfd.readouterr().out
    assert_same_tensors(tmp_path / "disk", tmp_path / "memory")
    assert learned(tmp_path / "disk") == learned(tmp_path / "memory")
    for name in ("disk", "memory"):
        found = evaluate(tmp_path / name, "cpu")
        assert found.test_bpd == found.summary_bpd and found.num_images == 40
    # A run goes on with images in memory as it began with images on the disk.
    more = small_config(tmp_path / "disk", data=images, schedule={"finetune_epochs": 2})
    assert train(more).num_epochs == 4


def test_replicas_read_their_own_images_from_the_disk(images, tmp_path):
    configs = [
        small_config(tmp_path / name, data={**images, "memory": memory}, parts={"num": 1, "replicas": 2})
        for name, memory in (("memory", "2 GB"), ("disk", "100 kB"))
    ]
    train_in_turn(2, configs)
    assert_same_tensors(tmp_path / "disk", tmp_path / "memory")
    assert learned(tmp_path / "disk") == learned(tmp_path / "memory")
