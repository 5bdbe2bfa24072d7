"""Runs on padded images and on floats: bits/dim, what the run leaves, and the flow that one loads."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeflow import Config, Flow, ImageData, Layer, evaluate, load_flow, train
from pipeflow.data import dequantized_batches
from pipeflow.errors import CheckpointError, DataError
from pipeflow.report.command import report
from pipeflow.use.commands import encode, sample


class Scale(Layer):
    """One scale and shift for each column of a table."""

    def __init__(self, num: int):
        super().__init__()
        self.log_scale, self.shift = (torch.nn.Parameter(torch.zeros(num)) for _ in range(2))

    def forward(self, x):
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum().expand(len(x))

    def inverse(self, y):
        return (y - self.shift) * (-self.log_scale).exp()


def settings(folder, **sections) -> Config:
    return Config.from_dict({
        "run": {"dir": str(folder), "device": "cpu", "figures": False},
        "schedule": {"local_epochs": 1, "finetune_epochs": 1},
        "optim": {"batch_size": 8, "lr": 0.01, "warmup_steps": 1},
        **sections,
    })  # fmt: skip


def discs(num: int, size: int = 28, seed: int = 0) -> torch.Tensor:
    """Grey images of a bright disc, [num, 1, size, size]."""
    centres = torch.rand(num, 2, 1, 1, generator=torch.Generator().manual_seed(seed)) * size / 2 + size / 4
    place = torch.arange(size)
    distance = (place[:, None] - centres[:, 0]) ** 2 + (place - centres[:, 1]) ** 2
    return (255 * (distance < size)).to(torch.uint8)[:, None]


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """The folder of a run on images of 28x28 that are padded to 32x32, and its images."""
    folder, data = tmp_path_factory.mktemp("runs") / "padded", ImageData(discs(24), discs(11, seed=1))
    config = settings(
        folder,
        data={"pad": 8, "flip": True},
        model={"num_blocks": 1, "num_steps": 2, "width": 4},
        parts={"num": 2, "split": "balanced"},
    )
    return folder, data, train(config, data=data)


def test_bits_per_dim_of_padded_images_are_of_their_own_values(padded, tmp_path):
    folder, data, summary = padded
    again = evaluate(folder, "cpu", data=data)
    assert again.test_bpd == again.summary_bpd == summary.test_bpd
    flow = load_flow(folder, device="cpu")
    (x,) = dequantized_batches(data.test, flow.flow.values, 11)
    assert x.shape == (11, 1, 32, 32)
    bits = -(flow.log_prob(x) - 1024 * math.log(256)) / math.log(2)
    torch.testing.assert_close(flow.bits_per_dim(data.test), bits / 784)
    assert float(bits.mean()) / 784 == pytest.approx(summary.test_bpd, abs=1e-6)
    # Losses are on the same scale: the whole flow's is what the first parts of it and the last add up to.
    assert abs(summary.epochs[-1].train_loss["flow"] - summary.epochs[-1].test_bpd) < 1
    alone = shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    for path in (alone, folder / "checkpoints" / "epoch-000002"):
        assert torch.equal(load_flow(path, device="cpu").bits_per_dim(data.test), flow.bits_per_dim(data.test))


def test_what_comes_back_has_no_padding(padded, tmp_path):
    folder, data, _ = padded
    flow = load_flow(folder, device="cpu")
    assert flow.shape == (1, 28, 28) and flow.sample(2).shape == (2, 1, 28, 28)
    latents = flow.encode(data.test[:3])
    assert torch.equal(flow.decode(latents), data.test[:3])
    assert flow.decode(latents, as_images=False).shape == (3, 1, 32, 32)
    assert Image.open(folder / "samples.png").size == (8 * (3 * 28 + 2) - 2,) * 2
    Image.fromarray(data.test[0, 0].numpy()).save(tmp_path / "a.png")
    assert "last" in encode(folder, [str(tmp_path / "a.png")], tmp_path / "a.safetensors", device="cpu")
    with pytest.raises(DataError, match=r"takes \[num, 1, 32, 32\]"):
        flow.log_prob(torch.zeros(1, 1, 28, 28))


def test_the_padding_stays_for_as_long_as_the_run_lives(padded):
    folder, data, _ = padded
    config = settings(
        folder, model={"num_blocks": 1, "num_steps": 2, "width": 4}, parts={"num": 2, "split": "balanced"}
    )
    with pytest.raises(CheckpointError, match="data.pad: is None, but the run in .* has 8"):
        train(config, data=data)


@pytest.mark.parametrize(
    "train_on, message",
    [
        (torch.rand(8, 1, 28, 28), "data.pad is 8, but python has floats"),
        (torch.zeros(8, 784, dtype=torch.uint8), r"data.pad is 8, but an image of python has the shape \[784\]"),
    ],
)
def test_data_that_cannot_be_padded(train_on, message, tmp_path):
    with pytest.raises(DataError, match=message):
        train(settings(tmp_path / "run", data={"pad": 8}), data=ImageData(train_on, train_on))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a run on a table of floats, two columns of different scale, and the table."""
    folder = tmp_path_factory.mktemp("runs") / "table"
    rows = torch.randn(80, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5]) + 1
    data = ImageData(rows[:64], rows[64:], "a table")
    config = settings(folder, parts={"split": ["layers.1"]})
    summary = train(config, flow=Flow([Scale(2), Scale(2)], shape=(2,)), data=data)
    return folder, data, summary


def untrained() -> Flow:
    return Flow([Scale(2), Scale(2)], shape=(2,))


def test_floats_are_neither_scaled_nor_dequantized(table):
    folder, data, summary = table
    again = evaluate(folder, "cpu", data=data, flow=untrained)
    assert again.test_bpd == again.summary_bpd == summary.test_bpd
    flow = load_flow(folder, flow=untrained, device="cpu")
    nats = -flow.log_prob(data.test)
    expected = (
        -torch.distributions.Normal(flow.flow.prior.mean.detach(), flow.flow.prior.log_scale.detach().exp())
        .log_prob(flow.encode(data.test).last)
        .sum(1)
    )
    for _, layer in flow.flow.named_layers():
        expected = expected - layer.log_scale.detach().sum()
    torch.testing.assert_close(nats.float(), expected)
    assert float(nats.mean()) / (2 * math.log(2)) == pytest.approx(summary.test_bpd, rel=1e-6)
    torch.testing.assert_close(flow.bits_per_dim(data.test), nats / (2 * math.log(2)))
    torch.testing.assert_close(flow.decode(flow.encode(data.test)), data.test)
    assert summary.initial_bpd > summary.test_bpd


def test_a_table_is_sampled_into_an_array_and_reported_in_nats(table, tmp_path, capsys):
    folder, _, summary = table
    samples = np.load(folder / "samples.npy", allow_pickle=False)
    assert samples.dtype == np.float32 and samples.shape == (64, 2)
    assert sample(folder, 5, out=tmp_path / "s.npy", flow=f"{__name__}:untrained").endswith("s.npy")
    assert np.load(tmp_path / "s.npy").shape == (5, 2)
    report([folder])
    nats = summary.test_bpd * 2 * math.log(2)
    assert f"of a density of floats; test {nats:.3f} nats an item" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["values"]["dtype"] == "float32"


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda flow: flow.bits_per_dim(torch.zeros(3, 2, dtype=torch.uint8)), "trained on floats: use x.float"),
        (lambda flow: flow.log_prob(torch.full((3, 2), math.nan)), "NaN or infinite"),
        (lambda flow: flow.encode(torch.zeros(3, 3)), r"takes \[num, 2\]"),
    ],
)
def test_items_that_a_flow_of_floats_does_not_take(ask, message, table):
    with pytest.raises(DataError, match=message):
        ask(load_flow(table[0], flow=untrained, device="cpu"))


def test_bytes_are_not_evaluated_under_a_flow_of_floats(table):
    rows = torch.zeros(3, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="its flow takes floats, they are torch.uint8"):
        evaluate(table[0], "cpu", data=ImageData(rows, rows), flow=untrained)
