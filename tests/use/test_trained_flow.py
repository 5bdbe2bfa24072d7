"""A trained flow is what its run evaluated and drew, wherever it is loaded from; its latents give back the images."""

import json

import pytest
import torch

import pipeflow
from pipeflow import Latents, load_flow
from pipeflow.data import dequantize, load_data
from pipeflow.errors import DataError, NoInverse
from pipeflow.rundir.reading import read_config
from pipeflow.use.sample import sample_grid


@pytest.fixture(scope="module")
def trained(finished_run):
    return load_flow(finished_run, device="cpu")


@pytest.fixture(scope="module")
def images(finished_run):
    """The run's test images."""
    return load_data(read_config(finished_run).data).test


def test_bits_per_dim_of_the_test_images_are_the_run_s_own(finished_run, trained, images):
    summary = json.loads((finished_run / "summary.json").read_text())
    bpd = trained.bits_per_dim(images)
    assert bpd.dtype == torch.float64 and bpd.shape == (len(images),)
    assert bpd.mean().item() == pytest.approx(summary["test_bpd"], abs=1e-7)
    torch.testing.assert_close(trained.bits_per_dim(images, batch_size=7), bpd, atol=1e-6, rtol=0)
    assert not torch.equal(trained.bits_per_dim(images, seed=1), bpd)


def test_log_prob_is_in_nats_of_dequantized_images(trained, images):
    x = dequantize(images[:5], torch.full(images[:5].shape, 0.25))
    log_prob = trained.log_prob(x, batch_size=2)
    assert log_prob.dtype == torch.float64 and not log_prob.requires_grad
    torch.testing.assert_close(log_prob, trained.flow.log_prob(x).detach(), atol=1e-3, rtol=0)


def test_decode_gives_the_images_back_from_latents_and_their_file(trained, images, tmp_path):
    latents = trained.encode(images, batch_size=10)
    assert latents.last.shape == (len(images), 24, 8, 8) and [each.shape[1:] for each in latents.taken_out] == [
        (6, 16, 16)
    ]
    assert torch.equal(trained.decode(latents, batch_size=9), images)
    x = dequantize(images, torch.rand(images.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(trained.decode(trained.encode(x), as_images=False), x, atol=1e-5, rtol=0)
    latents[:3].save(tmp_path / "latents.safetensors")
    assert torch.equal(trained.decode(Latents.load(tmp_path / "latents.safetensors")), images[:3])


def test_samples_are_those_of_the_run(finished_run, trained, tmp_path):
    sample_grid(trained.sample(64), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == (finished_run / "samples.png").read_bytes()
    assert trained.sample(2, temperature=0.5, seed=3).shape == (2, 3, 32, 32)


def test_an_interpolation_goes_from_the_one_to_the_other_through_all_latents(trained, images):
    between = trained.interpolate(images[0], images[1], num=5)
    assert between.shape == (5, 3, 32, 32) and between.dtype == torch.uint8
    assert torch.equal(between[0], images[0]) and torch.equal(between[4], images[1])
    ends = trained.encode(images[:2])
    middle = Latents(ends.last.mean(0, True), tuple(each.mean(0, True) for each in ends.taken_out))
    assert (between[2].int() - trained.decode(middle)[0].int()).abs().max() <= 1  # one bin of rounding


X = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda flow: flow.log_prob(X + torch.linspace(0, 1, 32)), r"values from 0 to 1, this takes \[-0\.5, 0\.5\)"),
        (lambda flow: flow.log_prob(X * torch.nan), "values from nan"),
        (lambda flow: flow.log_prob(X.byte()), "bits_per_dim takes uint8"),
        (lambda flow: flow.log_prob(X.double()), r"x\.float\(\)"),
        (lambda flow: flow.log_prob(X[:, :1]), r"\[2, 1, 32, 32\], this flow takes \[num, 3, 32, 32\]\."),
        (lambda flow: flow.log_prob(X[0]), r"give one image as images\[None\]"),
        (lambda flow: flow.bits_per_dim(X), "images are torch.float32: give uint8"),
        (lambda flow: flow.bits_per_dim(X.byte()[:0]), r"shape \[0, 3, 32, 32\]"),
        (lambda flow: flow.bits_per_dim(X.byte().numpy()), r"a ndarray: give a torch tensor"),
        (lambda flow: flow.encode(X.byte()[0]), r"images\[None\]"),
        (lambda flow: flow.encode(X + 1), "values from 1 to 1"),
        (lambda flow: flow.decode(Latents(torch.zeros(1, 48, 4, 4))), "of another flow"),
        (lambda flow: flow.decode(X), "decode takes what encode gives, Latents, not Tensor"),
        (lambda flow: flow.sample(0), "num: 0, temperature: 0.7: give 1 or more"),
        (lambda flow: flow.sample(1, temperature=-1), "num: 1, temperature: -1: .* from 0 on"),
        (lambda flow: flow.sample(1, temperature=float("nan")), "temperature: nan"),
        (lambda flow: flow.interpolate(X[0].byte(), X[1]), "images are torch.float32"),
        (lambda flow: flow.interpolate(X[0].byte(), X[1].byte(), num=1), "2 or more"),
    ],
)  # fmt: skip
def test_inputs_that_would_give_a_wrong_number_are_an_error(trained, call, message):
    with pytest.raises(DataError, match=message):
        call(trained)


def test_a_file_of_something_else_is_no_latents(finished_run, tmp_path):
    (tmp_path / "text").write_text("text")
    for path in (finished_run / "model.safetensors", tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(DataError, match="is no file of latents"):
            Latents.load(path)


class OneWay(pipeflow.Layer):
    """A layer without an inverse."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.shift, x.new_zeros(len(x))


def test_without_an_inverse_a_flow_has_likelihoods_and_says_what_it_lacks(train_own, noise, tmp_path):
    def make():
        return pipeflow.Flow([OneWay(), OneWay()], (2, 4, 4))

    trained = load_flow(train_own(tmp_path / "run", make(), noise), flow=make, device="cpu")
    latents = trained.encode(noise.test)
    assert trained.bits_per_dim(noise.test).shape == (8,)
    for call in (
        lambda: trained.decode(latents),
        lambda: trained.sample(1),
        lambda: trained.interpolate(*noise.test[:2]),
    ):
        with pytest.raises(NoInverse, match="OneWay has no inverse: write one"):
            call()
