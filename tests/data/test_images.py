"""A folder or a zip of images: reading, the cache, and the messages about sources that cannot be used."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeflow.data import load_data
from pipeflow.data.image_folder import measure_images
from pipeflow.errors import DataError


def encode(pixels: np.ndarray, format: str = "PNG") -> bytes:
    """`pixels`: uint8, [height, width, 3] or [height, width]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture
def files() -> dict[str, bytes]:
    """Eight training and three test images of 5 x 4 pixels, by path, not in the order of their paths."""
    train = [f"train/{kind}/{i}.png" for kind in ("dog", "cat") for i in range(4)]
    paths = train + [f"test/cat/{i}.png" for i in range(3)]
    pixels = np.random.default_rng(0).integers(0, 256, (len(paths), 4, 5, 3), np.uint8)
    return {path: encode(image) for path, image in zip(paths, pixels)}


def write_zip(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return str(path)


def write_folder(path: Path, files: dict[str, bytes]) -> str:
    for name, contents in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)
    return str(path)


@pytest.fixture(params=[write_zip, write_folder], ids=["zip", "folder"])
def write(request: pytest.FixtureRequest):
    """Writes files as a zip or as a folder."""
    return request.param


def same(first, second) -> bool:
    return torch.equal(first.train, second.train) and torch.equal(first.test, second.test)


def test_zip_and_folder_give_every_image_to_its_part_whatever_the_order_of_files(files, options, tmp_path):
    data = load_data(options(path=write_zip(tmp_path / "a.zip", files)))
    assert data.train.shape == (8, 3, 4, 5) and data.test.shape == (3, 3, 4, 5) and data.shape == (3, 4, 5)
    for part, images in (("train", data.train), ("test", data.test)):
        found = {encode(image.permute(1, 2, 0).numpy()) for image in images}
        assert found == {contents for path, contents in files.items() if path.startswith(part)}
    assert same(data, load_data(options(path=write_zip(tmp_path / "b.zip", dict(reversed(files.items()))))))
    assert same(data, load_data(options(path=write_folder(tmp_path / "folder", files))))


def test_one_common_folder_in_front_and_macos_twins_and_other_files(files, write, options, tmp_path):
    plain = load_data(options(path=write(tmp_path / "plain", files)))
    wrapped = {f"my.images/{path}": contents for path, contents in files.items()}
    extra = {"my.images/labels.txt": b"x", "__MACOSX/train/._0.png": b"x", "my.images/train/cat/._0.png": b"x"}
    assert same(plain, load_data(options(path=write(tmp_path / "wrapped", wrapped | extra))))


def test_any_depth_format_and_mode(options, write, tmp_path):
    colour, opaque = np.full((4, 5, 3), 200, np.uint8), np.full((4, 5, 4), [200, 200, 200, 255], np.uint8)
    files = {
        "train/0.PNG": encode(colour),
        "train/a/b/c/1.Jpeg": encode(colour, "JPEG"),
        "train/2.bmp": encode(colour, "BMP"),
        "train/3.png": encode(opaque),
        "test/4.WEBP": encode(colour, "WEBP"),
    }
    data = load_data(options(path=write(tmp_path / "source", files)))
    assert len(data.train) == 4 and len(data.test) == 1
    assert (data.train.int() - 200).abs().max() <= 2 and (data.test.int() - 200).abs().max() <= 2


def test_backslashes_in_a_zip_are_slashes(files, options, tmp_path):
    """PowerShell 5 writes them."""
    windows = {path.replace("/", "\\"): contents for path, contents in files.items()}
    plain = load_data(options(path=write_zip(tmp_path / "plain.zip", files)))
    assert same(plain, load_data(options(path=write_zip(tmp_path / "windows.zip", windows | {"train\\": b""}))))


def test_pictures_of_other_kinds_are_not_left_out_in_silence(files, options, write, tmp_path):
    message = error_of(options, write(tmp_path / "source", files | {"train/dog/x.GIF": b"", "train/x.txt": b""}))
    assert "train/dog/x.GIF in " in message and "is none of .png, .jpg, .jpeg, .bmp, .webp: convert" in message


@pytest.fixture
def mixed(files) -> dict[str, bytes]:
    """The files, two of which are grey."""
    greys = {"train/cat/3.png": np.full((4, 5), 30, np.uint8), "test/cat/0.png": np.full((4, 5), 40, np.uint8)}
    return files | {path: encode(pixels) for path, pixels in greys.items()}


def test_grey_images_stay_one_channel(files, options, write, tmp_path):
    greys = {path: encode(np.full((4, 5), i, np.uint8)) for i, path in enumerate(files)}
    path = write(tmp_path / "source", greys)
    data = load_data(options(path=path))
    assert data.shape == (1, 4, 5) == measure_images(options(path=path))[0] and data.notes == ()
    tripled = load_data(options(path=path, channels=3))
    assert tripled.shape == (3, 4, 5) == measure_images(options(path=path, channels=3))[0]
    assert (tripled.train == data.train).all()
    assert "data.channels 3: 11 of 11 images are grey and become RGB" in tripled.notes[0]


def test_greys_that_are_stored_as_rgb_are_named_and_lose_nothing_as_one_channel(files, options, write, tmp_path):
    greys = {path: encode(np.full((4, 5, 3), i, np.uint8)) for i, path in enumerate(files)}
    path = write(tmp_path / "grey", greys)
    data = load_data(options(path=path))
    assert data.shape == (3, 4, 5) and len(data.notes) == 1
    assert data.notes[0].startswith("All images are grey, stored as RGB") and "--data.channels 1" in data.notes[0]
    one = load_data(options(path=path, channels=1))
    assert one.shape == (1, 4, 5) and one.notes == () and (one.train == data.train).all()
    one_in_colour = greys | {"test/cat/2.png": files["test/cat/2.png"]}
    path = write(tmp_path / "colour", one_in_colour)
    assert load_data(options(path=path)).notes == ()
    assert "1 of 11 images are in colour" in load_data(options(path=path, channels=1)).notes[0]


def test_grey_and_colour_do_not_mix(mixed, options, write, tmp_path):
    path = write(tmp_path / "source", mixed)
    message = error_of(options, path)
    assert "train/cat/0.png" in message and "is RGB, but train/cat/3.png is grey: set data.channels" in message
    for channels, says in ((3, "2 of 11 images are grey and become RGB"), (1, "9 of 11 images are in colour")):
        for _ in range(2):  # from the files, then from the cache
            data = load_data(options(path=path, channels=channels, num_test=1))
            assert data.shape == (channels, 4, 5)
            assert len(data.notes) == 1 and f"data.channels {channels}: {says}" in data.notes[0]


def test_pictures_are_turned_before_their_sizes_are_compared(options, write, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8))
    files = {}
    for orientation, turn in ((1, None), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        (picture if turn is None else picture.transpose(turn)).save(file, "PNG", exif=exif)
        files |= {f"{part}/{orientation}.png": file.getvalue() for part in ("train", "test")}
    data = load_data(options(path=write(tmp_path / "source", files)))
    assert data.shape == (3, 4, 5) and (data.train == data.train[0]).all()


def test_a_cache_of_other_rules_is_not_read(files, options, tmp_path, cache, monkeypatch):
    path = write_zip(tmp_path / "source.zip", files)
    load_data(options(path=path))
    monkeypatch.setattr("pipeflow.data.picture.RULES", 1)
    load_data(options(path=path))
    assert len(list(cache.iterdir())) == 2


def test_a_source_is_decoded_once_and_anew_when_it_changes(files, write, options, tmp_path, monkeypatch):
    path = write(tmp_path / "source", files)
    first = load_data(options(path=path))
    with monkeypatch.context() as patch:
        patch.delattr(Image, "open")
        assert same(first, load_data(options(path=path)))
    files["train/cat/0.png"] = encode(np.zeros((4, 5, 3), np.uint8))
    second = load_data(options(path=write(tmp_path / "source", files)))
    assert not same(first, second) and (second.train.flatten(1) == 0).all(1).sum() == 1


def test_another_folder_of_the_same_names_sizes_and_times_is_another_source(options, tmp_path):
    """As archives unpack it that keep no times."""
    for value, name in ((10, "one"), (200, "other")):
        image = encode(np.full((4, 5, 3), value, np.uint8), "BMP")
        for path in ("train/0.bmp", "test/0.bmp"):
            write_folder(tmp_path / name, {path: image})
            os.utime(tmp_path / name / path, (0, 0))
        assert (load_data(options(path=str(tmp_path / name))).train == value).all()


def flip_a_bit(contents: bytes) -> bytes:
    return contents[:-1] + bytes([contents[-1] ^ 1])


@pytest.mark.parametrize(
    "name, damage",
    [
        ("images.npy", flip_a_bit),
        ("images.npy", lambda contents: contents[: len(contents) // 2]),
        ("images.npy", lambda contents: contents.replace(b"(11, 3", b"(99, 3")),
        ("images.json", lambda contents: contents[:-5]),
        ("images.json", lambda contents: contents.replace(b'"num_train": 8', b'"num_train": 7')),
        ("images.json", lambda contents: contents.replace(b'"num_converted": 0', b'"num_converted": []')),
        ("images.json", lambda contents: b"{}"),
        ("images.json", lambda contents: b"[]"),
    ],
    ids=["bit", "half", "header", "half json", "other json", "no number", "empty object", "no object"],
)
def test_a_damaged_cache_is_decoded_anew_and_repaired(name, damage, files, options, tmp_path, cache):
    path = write_zip(tmp_path / "source.zip", files)
    first = load_data(options(path=path))
    (stored,) = cache.rglob(name)
    intact = stored.read_bytes()
    stored.write_bytes(damage(intact))
    assert stored.read_bytes() != intact
    assert same(first, load_data(options(path=path)))
    assert stored.read_bytes() == intact
    assert sorted(file.name for file in stored.parent.iterdir()) == ["images.json", "images.npy"]

    stored.write_bytes(damage(intact))
    damaged = files["train/cat/0.png"]
    Path(path).write_bytes(Path(path).read_bytes().replace(damaged, bytes(len(damaged))))
    with pytest.raises(DataError, match=r"data\.path: train/cat/0\.png in .*cannot be decoded"):  # its checksum fails
        load_data(options(path=path))


def test_the_cache_folder_may_be_in_the_home_folder(files, options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/mine")
    load_data(options(path=write_zip(tmp_path / "source.zip", files)))
    assert list((tmp_path / "home" / "mine" / "pipeflow").iterdir())


def test_goes_on_without_a_cache_that_cannot_be_written(files, write, options, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write(tmp_path / "source", files)
    assert same(load_data(options(path=path)), load_data(options(path=path)))


def error_of(options, path) -> str:
    with pytest.raises(DataError) as caught:
        load_data(options(path=path))
    return str(caught.value)


def test_no_path_no_source_no_zip_no_images(files, options, tmp_path, monkeypatch):
    assert "data.path is not set" in error_of(options, None)
    assert f"data.path: there is no {tmp_path / 'gone'};" in error_of(options, str(tmp_path / "gone"))
    monkeypatch.chdir(tmp_path)
    message = error_of(options, "data/gone.zip")
    assert f"there is no {tmp_path}/data/gone.zip (data/gone.zip, relative to the current folder);" in message
    (tmp_path / "text.zip").write_text("no zip")
    message = error_of(options, str(tmp_path / "text.zip"))
    assert "data.path" in message and "text.zip is not a zip" in message
    Path("mine").mkdir()
    assert f"{tmp_path}/mine has no images in train/" in error_of(options, "mine")
    for part in ("train", "test"):
        others = {path: contents for path, contents in files.items() if not path.startswith(part)}
        message = error_of(options, write_folder(tmp_path / f"without {part}", others | {f"{part}/a.txt": b""}))
        assert "data.path" in message and f"no images in {part}/" in message


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda good: good[: len(good) // 2], ["cannot be decoded", "replace or remove"]),
        (
            lambda good: encode(np.zeros((5, 4, 3), np.uint8)),
            ["4x5", "5x4", "set data.resize and data.crop, or remove"],
        ),
        (lambda good: encode(np.zeros((4, 5), np.uint16)), ["more than 8 bits", "save it with 8 bits"]),
        (lambda good: encode(np.zeros((4, 5, 4), np.uint8)), ["transparent", "put it on a background"]),
        (lambda good: encode(np.zeros((5000, 5000), bool)), ["more than 16,000,000 pixels"]),
        (lambda good: encode(np.zeros((10_000, 10_000), bool)), ["more than 16,000,000 pixels"]),
        (lambda good: bytes(64_000_001), ["64,000,001 bytes", "remove it"]),
    ],
    ids=["truncated", "another size", "16 bits", "transparent", "large", "warned of", "large file"],
)
def test_a_file_that_cannot_be_used_is_named(make, says, files, write, options, tmp_path, cache, recwarn):
    files["train/dog/2.png"] = make(files["train/dog/2.png"])
    message = error_of(options, write(tmp_path / "source", files))
    assert "data.path" in message and "train/dog/2.png" in message and "source" in message
    assert all(words in message for words in says), message
    assert not list(cache.rglob("*")) and not recwarn.list
