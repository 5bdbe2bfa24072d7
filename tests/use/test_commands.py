"""The commands that write what a flow makes write what its Python interface gives."""

import numpy as np
import pytest
import torch
from PIL import Image

import pipeflow
from pipeflow import Latents, load_flow
from pipeflow.data import dead_leaves
from pipeflow.errors import DataError
from pipeflow.use.commands import encode, interpolate, sample
from pipeflow.use.sample import sample_grid


@pytest.fixture
def files(tmp_path):
    """Two images as files, [2, 3, 32, 32], and their names."""
    images = dead_leaves(2, seed=5)
    names = [str(tmp_path / f"{index}.png") for index in range(2)]
    for image, name in zip(images, names):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)
    return images, names


def test_sample_gives_the_grid_that_the_run_left(finished_run, tmp_path):
    path = tmp_path / "new" / "grid.png"
    assert sample(finished_run, out=path).endswith(f"seed 0: {path}")
    assert path.read_bytes() == (finished_run / "samples.png").read_bytes()


def test_samples_go_into_the_run_folder_or_here(copy, tmp_path, monkeypatch):
    sample(copy, 3, temperature=0.5, seed=2)
    grid = np.asarray(Image.open(copy / "samples_t0.5_seed2.png"))
    expected = load_flow(copy).sample(3, temperature=0.5, seed=2)
    np.testing.assert_array_equal(grid[1::3, 1:96:3], expected[0].permute(1, 2, 0).numpy())
    monkeypatch.chdir(tmp_path)
    sample(copy / "checkpoints" / "epoch-000002", 1)
    assert (tmp_path / "samples_t0.7_seed0.png").is_file()


def test_encode_writes_latents_that_decode_to_the_files(finished_run, tmp_path, files):
    images, names = files
    out = tmp_path / "new" / "latents.safetensors"
    assert encode(finished_run, names, out) == f"last [2, 24, 8, 8], taken_out.0 [2, 6, 16, 16]: {out}"
    assert torch.equal(load_flow(finished_run).decode(Latents.load(out)), images)


def test_interpolate_draws_the_images_side_by_side(finished_run, tmp_path, files):
    images, names = files
    interpolate(finished_run, *names, num=10, out=tmp_path / "way.png")
    sample_grid(load_flow(finished_run).interpolate(*images, num=10), tmp_path / "expected.png", columns=10)
    assert (tmp_path / "way.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_files_that_are_no_such_images_are_named(finished_run, tmp_path, files):
    out = tmp_path / "out.safetensors"
    Image.new("L", (32, 32)).save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("text")
    for name, words in [
        ("grey.png", r"grey.png has the shape \[1, 32, 32\], the flow is of images of \[3, 32, 32\]"),
        ("text.png", "text.png cannot be decoded .it is none of PNG, JPEG, BMP, WEBP."),
        ("nothing.png", "nothing.png cannot be read .No such file"),
    ]:
        with pytest.raises(DataError, match=words):
            encode(finished_run, [files[1][0], str(tmp_path / name)], out)
    assert not out.exists()
    with pytest.raises(OSError) as caught:
        encode(finished_run, files[1], "/proc/latents")
    assert caught.value.filename == "/proc/latents"  # and not that of a file which is renamed to it


def test_samples_of_two_channels_are_no_picture(train_own, noise, tmp_path, monkeypatch):
    run = train_own(tmp_path / "run", pipeflow.glow((2, 4, 4), 1, 1, 4), noise)
    (tmp_path / "of_two.py").write_text(
        "from pipeflow import glow\ndef make():\n    return glow((2, 4, 4), num_blocks=1, num_steps=1, width=4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"8-bit values of shape \[2, 4, 4\].*ends in \.npy"):
        sample(run, flow="of_two:make", out=tmp_path / "a.png")
    assert sample(run, num=3, flow="of_two:make").endswith("/run/samples_t0.7_seed0.npy")
    samples = np.load(run / "samples_t0.7_seed0.npy", allow_pickle=False)
    assert samples.dtype == np.uint8 and samples.shape == (3, 2, 4, 4)
    with pytest.raises(DataError, match=r"\[2, 4, 4\]; only .* can be read and drawn"):
        encode(run, ["a.png"], tmp_path / "a.safetensors", flow="of_two:make")
