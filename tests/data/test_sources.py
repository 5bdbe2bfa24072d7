"""`load_data`: subsets, the official CIFAR-10, a user's function, dead leaves, and options that cannot be met."""

import hashlib
import pickle
import socket
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from pipeflow.data import ImageData, dead_leaves, load_data
from pipeflow.errors import DataError

TRAIN = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)


def arrays(data):
    return TRAIN, TRAIN[:50]


def tensors(data):
    return [torch.from_numpy(TRAIN), torch.from_numpy(TRAIN[: int(data.path)])]


def ready(data):
    return ImageData(torch.from_numpy(TRAIN), torch.from_numpy(TRAIN[:50]), "own")


def labelled(data):
    train, test = torch.from_numpy(TRAIN), torch.from_numpy(TRAIN[:50])
    names = tuple(f"c{label}" for label in range(100))
    return ImageData(train, test, train_labels=train.flatten().long(), test_labels=test.flatten().long(), classes=names)


def nothing(data):
    pass


MINE = __name__
"""The functions above are a user's."""


def error_of(data) -> str:
    with pytest.raises(DataError) as caught:
        load_data(data)
    return str(caught.value)


@pytest.mark.parametrize("function", ["arrays", "tensors", "ready"])
def test_function_of_the_users(function, options):
    data = load_data(options(name=f"{MINE}:{function}", path="50"))
    assert sorted(data.train.flatten().tolist()) == list(range(100))
    assert sorted(data.test.flatten().tolist()) == list(range(50))
    assert data.name == ("own" if function == "ready" else f"{MINE}:{function}")


def test_subsets_are_the_first_of_one_permuted_order(options):
    whole = load_data(options(name=f"{MINE}:arrays"))
    assert all(part.flatten().tolist() != sorted(part.flatten().tolist()) for part in (whole.train, whole.test))
    few = load_data(options(name=f"{MINE}:arrays", num_train=30, num_test=7))
    assert torch.equal(few.train, whole.train[:30]) and torch.equal(few.test, whole.test[:7])
    assert torch.equal(load_data(options(name=f"{MINE}:arrays", num_train=100)).train, whole.train)


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"name": f"{MINE}:arrays", "num_train": 101}, ["data.num_train is 101", "only 100"]),
        ({"name": f"{MINE}:arrays", "num_test": 51}, ["data.num_test is 51", "only 50"]),
        ({"name": "cifar"}, ["data.name is 'cifar'", "cifar10, images, dead_leaves or module:function"]),
        ({"name": f"{MINE}:nothing"}, [f"data.name is '{MINE}:nothing'", "returned NoneType"]),
    ],
)
def test_options_that_cannot_be_met(asked, words, options):
    message = error_of(options(**asked))
    assert all(word in message for word in words), message


def test_subsets_take_labels_along(options):
    """The labels that `labelled` gives are the images' own values."""
    data = load_data(options(name=f"{MINE}:labelled", num_train=30, num_test=7))
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert torch.equal(images.flatten().long(), labels)
    assert data.classes[50] == "c50"


def test_dead_leaves_are_deterministic_and_fewer_are_the_first_of_more(options):
    images = dead_leaves(6, seed=3)
    assert torch.equal(images[:4], dead_leaves(4, seed=3)) and not torch.equal(images, dead_leaves(6, seed=4))
    assert dead_leaves(1, seed=3, size=16).shape == (1, 3, 16, 16)
    data = load_data(options(name="dead_leaves", num_train=6, num_test=5))
    assert data.train.shape == (6, 3, 32, 32) and data.test.shape == (5, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in torch.cat([data.train, data.test])}) == 11
    assert data.notes == ()
    (note,) = load_data(options(name="dead_leaves", path="a.npz", num_train=1, num_test=1)).notes
    assert note.startswith("data.path a.npz is not read")


def test_dead_leaves_have_the_statistics_of_photographs():
    """Neighbours are alike, values are spread, colour varies less than brightness, flat areas are not quite flat."""
    images = dead_leaves(200, seed=0).float()
    deviation = (images - images.mean()).flatten()
    neighbours = (images[..., 1:] - images.mean()).flatten() * (images[..., :-1] - images.mean()).flatten()
    assert neighbours.mean() / (deviation**2).mean() > 0.7
    assert 40 < images.std() < 70 and 90 < images.mean() < 140
    assert (images - images.mean(1, keepdim=True)).std() < 0.4 * images.mean(1).std()
    saturated = ((images == 0) | (images == 255)).float().mean()
    equal = (images[..., 1:] == images[..., :-1]).float().mean()
    assert saturated < 0.05 and equal < 0.12


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A small archive of the official layout and its pixels: torchvision expects it, and its network is a closed port."""
    source = tmp_path / "source" / "cifar-10-batches-py"
    source.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3072), np.uint8)

    def dump(name: str, contents: dict) -> str:
        (source / name).write_bytes(pickle.dumps(contents))
        return hashlib.md5((source / name).read_bytes()).hexdigest()

    batches = {f"data_batch_{i + 1}": pixels[4 * i : 4 * i + 4] for i in range(5)} | {"test_batch": pixels[20:]}
    sums = [
        [name, dump(name, {"data": part, "labels": [int(each[0]) % 2 for each in part]})]
        for name, part in batches.items()
    ]
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": dump("batches.meta", {"label_names": ["cat", "dog"]}),
    }
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, source.name)
    expected = {
        "url": "http://127.0.0.1:9/cifar-10-python.tar.gz",
        "train_list": sums[:5],
        "test_list": sums[5:],
        "meta": meta,
        "tgz_md5": hashlib.md5(archive.read_bytes()).hexdigest(),
    }
    for name, value in expected.items():
        monkeypatch.setattr(CIFAR10, name, value)
    return archive, pixels.reshape(30, 3, 32, 32)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A web server that has the archive."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    # torchvision asks for the address first and hangs up on the answer: the server's word on that is not ours.
    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        server.shutdown()


@pytest.mark.parametrize("place", ["root", "data", "site"])
def test_cifar10_from_the_official_archive(place, official, site, options, tmp_path, capfd, monkeypatch):
    """It lies in data.path, or without one in the folder `data`, or is downloaded without a word."""
    monkeypatch.chdir(tmp_path)
    archive, pixels = official
    if place == "site":
        monkeypatch.setattr(CIFAR10, "url", site)
    else:
        (tmp_path / place).mkdir()
        archive.rename(tmp_path / place / archive.name)
    data = load_data(options(name="cifar10", path=None if place == "data" else "root"))
    for part, expected in ((data.train, pixels[:20]), (data.test, pixels[20:])):
        assert {image.numpy().tobytes() for image in part} == {image.tobytes() for image in expected}
    for part, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert torch.equal(labels, part[:, 0, 0, 0].long() % 2)
    assert data.classes == ("cat", "dog")
    for part, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert torch.equal(labels, part[:, 0, 0, 0].long() % 2)
    assert data.classes == ("cat", "dog")
    assert (tmp_path / ("data" if place == "data" else "root") / archive.name).exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["closed port", "corrupt archive", "a network that never answers"])
def test_cifar10_not_to_be_had(fault, official, options, tmp_path, monkeypatch, capfd):
    root = tmp_path / "root"
    root.mkdir()
    if fault == "corrupt archive":
        (root / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    monkeypatch.setattr("pipeflow.data.sources.DOWNLOAD_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and says nothing
        if fault == "a network that never answers":
            monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz")
        message = error_of(options(name="cifar10", path=str(root)))
    assert len(message.splitlines()) <= 2 and str(root) in message
    assert "cifar-10-python.tar.gz" in message and "data.path" in message and "data.name images" in message
    assert ("timed out" in message) == (fault == "a network that never answers")
    assert socket.getdefaulttimeout() is None and capfd.readouterr() == ("", "")
