import numpy as np
import pytest
import torch
from PIL import Image

from pipeflow.flow import glow
from pipeflow.use.sample import draw_samples, sample_grid, to_data


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return glow((3, 8, 8), num_blocks=2, num_steps=1, width=4)


def test_fewer_samples_are_the_first_of_more(flow):
    many = draw_samples(flow, 10, temperature=0.7, seed=0, batch_size=4)
    assert many.dtype == torch.uint8 and many.shape == (10, 3, 8, 8) and many.float().std() > 0
    for num in (1, 4, 7):
        assert torch.equal(draw_samples(flow, num, temperature=0.7, seed=0, batch_size=4), many[:num])


def test_the_seed_and_the_temperature_matter(flow):
    samples = draw_samples(flow, 4, temperature=0.7, seed=0)
    assert not torch.equal(draw_samples(flow, 4, temperature=0.7, seed=1), samples)
    assert not torch.equal(draw_samples(flow, 4, temperature=0.8, seed=0), samples)
    coldest = draw_samples(flow, 4, temperature=0.0, seed=0)
    assert torch.equal(coldest, draw_samples(flow, 4, temperature=0.0, seed=1))
    assert torch.equal(coldest, coldest[:1].expand_as(coldest))


def test_the_inverse_takes_samples_to_the_images_they_are(flow):
    images = torch.arange(2 * 3 * 64, dtype=torch.uint8).view(2, 3, 8, 8)
    with torch.no_grad():
        latent, _, taken_out = flow((images.float() + 0.5) / 256 - 0.5)
        assert torch.equal(to_data(flow.inverse(latent, taken_out), flow.values), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid_puts_every_image_in_its_place(tmp_path, channels):
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, channels, 4, 6) * 20
    sample_grid(images, tmp_path / "grid.png", columns=3)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 12 + 2, 3 * 18 + 4) + ((3,) if channels == 3 else ())
    for index in range(5):
        top, left = index // 3 * 14, index % 3 * 20
        assert (grid[top : top + 12, left : left + 18] == 20 * index).all()
    assert (grid[12:14] == 255).all() and (grid[:, 18:20] == 255).all() and (grid[14:, 40:] == 255).all()
