"""Batches: the same numbers for the same (seed, epoch, step), whoever asks and in whatever order."""

import numpy as np
import pytest
import torch

from pipeflow.data import Batches, ImageData, dequantization_noise, dequantize
from pipeflow.data.random import generator
from pipeflow.errors import ConfigError, DataError


def numbered(num_train: int, num_test: int = 5) -> ImageData:
    """Images of [1, 2, 4] that tell their number and which way round they are: the last column is lighter by one."""
    train, test = (
        torch.arange(num, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 1, 2, 4) for num in (num_train, num_test)
    )
    train[..., -1] += 1
    return ImageData(train, test, "numbered")


def made(seed: int = 0, batch_size: int = 10, flip: bool = True, data: ImageData | None = None) -> Batches:
    return Batches(numbered(100) if data is None else data, seed, batch_size, flip)


def epoch_of(batches: Batches, epoch: int) -> torch.Tensor:
    return torch.cat([batches.train_images(epoch, step) for step in range(batches.steps_per_epoch)])


def numbers_of(images: torch.Tensor) -> list[int]:
    return images.amin((1, 2, 3)).tolist()


def pixels_of(batch: torch.Tensor) -> torch.Tensor:
    """The pixel values that a dequantized batch was made of."""
    return ((batch.double() + 0.5) * 256).floor()


def test_an_epoch_covers_each_image_once_and_drops_the_remainder():
    batches = made(batch_size=8)
    assert batches.steps_per_epoch == 12
    seen = numbers_of(epoch_of(batches, 0))
    assert len(seen) == len(set(seen)) == 96
    assert sorted(numbers_of(epoch_of(made(flip=False), 0))) == list(range(100))
    assert made(batch_size=100).steps_per_epoch == 1


def test_order_differs_by_epoch_and_seed_and_not_by_who_asks():
    first, second = epoch_of(made(), 0), epoch_of(made(), 1)
    assert numbers_of(first) != numbers_of(second)
    assert numbers_of(first) != numbers_of(epoch_of(made(seed=1), 0))
    other = made()
    for epoch, step, expected in ((1, 7, second), (0, 3, first), (1, 2, second)):
        assert torch.equal(other.train_images(epoch, step), expected[step * 10 : step * 10 + 10])


def test_a_share_is_that_of_the_whole_batch():
    batches = made()
    assert torch.equal(batches.train_images(2, 1, slice(3, 7)), batches.train_images(2, 1)[3:7])


def test_flips_mirror_half_of_the_images_and_leave_the_data_alone():
    data = numbered(200)
    before = data.train.clone()
    plain, flipped = (epoch_of(made(flip=flip, data=data), 0) for flip in (False, True))
    mirrored = (flipped != plain).flatten(1).any(1)
    assert 70 <= mirrored.sum() <= 130
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(-1))
    assert torch.equal(data.train, before)
    again = epoch_of(made(data=data), 1)
    order = torch.tensor(numbers_of(flipped)).argsort()
    assert not torch.equal(flipped[order], again[torch.tensor(numbers_of(again)).argsort()])


FLAT = ImageData(torch.zeros(4, 6, dtype=torch.uint8), torch.zeros(4, 6, dtype=torch.uint8), "flat")


@pytest.mark.parametrize(
    "ask, error, message",
    [
        (lambda: Batches(FLAT, 0, 2, flip=True), DataError, "data.flip"),
        (lambda: Batches(numbered(10), 0, 0, False), ConfigError, "optim.batch_size is 0.*10 training images"),
        (lambda: Batches(numbered(10), 0, 11, False), ConfigError, "optim.batch_size is 11.*10 training images"),
        (lambda: Batches(numbered(10), 0, 3, False).train_images(0, -1), IndexError, "step -1"),
        (lambda: Batches(numbered(10), 0, 3, False).train_images(0, 3), IndexError, "step 3"),
        (lambda: Batches(numbered(9), 0, 4, False).test_batches(0, 4), ConfigError, "eval.num_images is 0.*5 test"),
        (lambda: Batches(numbered(9), 0, 4, False).test_batches(6, 4), ConfigError, "eval.num_images is 6.*5 test"),
    ],
)
def test_images_may_have_any_shape_but_not_all_numbers(ask, error, message):
    assert Batches(FLAT, 0, 2, flip=False).train(0, 0).shape == (2, 6)
    with pytest.raises(error, match=message):
        ask()


def test_dequantize_keeps_to_its_bin_for_any_noise():
    images = torch.arange(256, dtype=torch.uint8)
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    for u in (0.0, 0.5, largest):
        noise = torch.full((256,), u)
        values = dequantize(images, noise)
        assert torch.equal(images, torch.arange(256, dtype=torch.uint8)) and (noise == u).all()
        assert values.dtype == torch.float32 and values.min() >= -0.5 and values.max() < 0.5
        # float64 holds the exact edges of the bins.
        assert torch.equal(pixels_of(values), images.double())
        assert ((values.double() + 0.5) * 256 - images - u).abs().max() <= 2**-17
    plain = images.float() / 256 - 0.5 + torch.full((256,), largest) / 256
    assert plain.max() == 0.5, "what dequantize is to avoid"


def test_a_slice_of_a_batch_needs_no_more_than_a_slice_of_the_noise():
    batches = made(seed=3, batch_size=12)
    noise = dequantization_noise(3, "train", 2, 1, (12, 1, 2, 4))
    assert torch.equal(noise, batches.train_noise(2, 1))
    assert torch.equal(dequantize(batches.train_images(2, 1)[4:9], noise[4:9]), batches.train(2, 1)[4:9])
    assert torch.equal(batches.train(2, 1, slice(4, 9)), batches.train(2, 1)[4:9])


def test_floats_are_taken_as_they_are():
    table = torch.arange(24.0).reshape(12, 2) / 7
    batches = Batches(ImageData(table, table[:5]), seed=3, batch_size=12, flip=False)
    for taken in (batches.train(0, 0), batches.initial()):
        assert sorted(taken.tolist()) == table.tolist() and taken.dtype == torch.float32
    assert torch.equal(torch.cat(list(batches.test_batches(None, 2))), table[:5])
    assert torch.equal(batches.train(0, 0, slice(4, 9)), batches.train(0, 0)[4:9])


def test_noise_is_uniform_and_new_at_every_step():
    noise = dequantization_noise(0, "train", 0, 0, (64, 3, 32, 32))
    assert abs(noise.mean() - 0.5) < 0.003 and abs(noise.var() - 1 / 12) < 0.001
    for other in ((1, "train", 0, 0), (0, "initial", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)):
        assert not torch.equal(noise[:1], dequantization_noise(*other, (1, 3, 32, 32)))


def test_generators_of_different_positions_differ():
    positions = [(0, "a"), (0, "a", 0), (0, "a", 0, 0), (0, "a", 1), (1, "a"), (0, "b"), (0, "a", 0, 1), (0, "a", 1, 0)]
    seeds = {generator(*position).initial_seed() for position in positions + [(2**40, "a"), (0, "a", 2**40)]}
    assert len(seeds) == 10
    # Written down, so that a run can be continued by another process and a later version.
    assert generator(7, "order", 1).initial_seed() == 15659773195073666602


def test_initial_batch_is_of_training_images_by_seed():
    initial = made(batch_size=20).initial()
    assert torch.equal(initial, made(batch_size=20).initial())
    images = pixels_of(initial)
    assert len(set(numbers_of(images))) == 20 and (images[..., -1] > images[..., 0]).all()
    assert not torch.equal(images, pixels_of(made(seed=1, batch_size=20).initial()))


def test_evaluation_is_the_same_whatever_the_run():
    data = numbered(20, num_test=11)
    whole = torch.cat(list(made(batch_size=4, data=data).test_batches(None, 11)))
    assert numbers_of(pixels_of(whole)) == list(range(11))
    other = made(seed=5, batch_size=7, flip=False, data=data)
    for num_images, batch_size, sizes in ((None, 4, [4, 4, 3]), (7, 3, [3, 3, 1]), (8, 4, [4, 4]), (2, 64, [2])):
        found = list(other.test_batches(num_images, batch_size))
        assert [len(batch) for batch in found] == sizes
        assert torch.equal(torch.cat(found), whole[: sum(sizes)])
