"""The embedded images, made by the dead-leaves model of natural images, so that a first run needs no download.

Leaves are discs whose radii have the density r^-3. They fall on each other until they cover everything. The view from above
has the edges, occlusions and scale invariance of photographs: Lee, Mumford, Huang, 'Occlusion Models for Natural Images'
(2001).
"""

import numpy as np
import torch

SUPERSAMPLING = 2
LEAVES_PER_DRAW = 512
TRIED_PER_ROUND = 2**15
"""Pairs of a leaf and a pixel that are tried at a time."""
# Opponent colours, as fractions of luminance. Natural scenes vary more from blue to yellow than from red to green.
BLUE_YELLOW = np.array([0.6, 0.4, -1.0], np.float32)
RED_GREEN = np.array([1.0, -0.7, 0.1], np.float32)


def dead_leaves(num_images: int, seed: int, size: int = 32) -> torch.Tensor:
    """Images of the dead-leaves model, uint8, [num_images, 3, size, size].

    Image i depends on `seed`, `size` and i alone, so a smaller `num_images` gives the first of the same images.
    """
    images = np.empty((num_images, 3, size, size), np.uint8)
    for index in range(num_images):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))
        images[index] = _image(rng, size)
    return torch.from_numpy(images)


def _image(rng: np.random.Generator, size: int) -> np.ndarray:
    """One image, uint8, [3, size, size]."""
    fine = size * SUPERSAMPLING
    leaves, leaf_of = _fall(rng, fine)
    # The leaves of an image share exposure, contrast, the colour of the light and the noise of the camera.
    exposure, contrast = rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.28)
    light = rng.normal(0, 0.07) * BLUE_YELLOW + rng.normal(0, 0.02) * RED_GREEN
    sensor_noise = np.float32(rng.uniform(0.004, 0.01))
    luminance = np.clip(rng.normal(exposure, contrast, len(leaves)), 0.03, 0.97)
    blue_yellow, red_green = rng.normal(0, [[0.11], [0.05]], (2, len(leaves)))
    chroma = np.multiply.outer(BLUE_YELLOW, blue_yellow) + np.multiply.outer(RED_GREEN, red_green)
    colours = (luminance * (1 + light[:, None] + chroma)).astype(np.float32)
    # A leaf is lit from one side, so its brightness changes linearly, and more slowly the larger it is.
    slopes = rng.normal(0, 0.12, (len(leaves), 2)).astype(np.float32) / leaves[:, 2:]
    levels = 1 - (slopes * leaves[:, :2]).sum(1)

    y, x = np.divmod(np.arange(fine * fine), fine)
    shade = levels[leaf_of] + slopes[leaf_of, 0] * x + slopes[leaf_of, 1] * y
    pixels = colours[:, leaf_of] * shade
    pixels = pixels.reshape(3, size, SUPERSAMPLING, size, SUPERSAMPLING).mean((2, 4))
    pixels += rng.standard_normal(pixels.shape, np.float32) * sensor_noise
    image: np.ndarray = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return image


def _fall(rng: np.random.Generator, fine: int) -> tuple[np.ndarray, np.ndarray]:
    """Lets leaves fall, front to back, until they cover every pixel of a fine x fine picture.

    Returns the leaves, float32, [leaves, 3] (centre x, centre y, radius in fine pixels), and the index of the leaf seen at
    each pixel, int64, [fine * fine].
    """
    leaves = _draw_leaves(rng, fine)
    seen = np.empty(fine * fine, np.int64)
    open_pixels = np.arange(fine * fine)
    next_leaf = 0
    while len(open_pixels):
        # The fewer pixels are open, the more leaves are tried at a time, so that each round is about as much work.
        end = next_leaf + int(np.clip(TRIED_PER_ROUND // len(open_pixels), 8, 128))
        while len(leaves) < end:
            leaves = np.concatenate([leaves, _draw_leaves(rng, fine)])
        centre_x, centre_y, radius = leaves[next_leaf:end].T[:, :, None]
        y, x = np.divmod(open_pixels, fine)
        square = (x.astype(np.float32) - centre_x) ** 2
        square += (y.astype(np.float32) - centre_y) ** 2
        inside = square <= radius**2
        front = inside.argmax(0)
        covered = inside[front, np.arange(len(open_pixels))]
        seen[open_pixels[covered]] = next_leaf + front[covered]
        open_pixels = open_pixels[~covered]
        next_leaf = end
    return leaves[:next_leaf], seen


def _draw_leaves(rng: np.random.Generator, fine: int) -> np.ndarray:
    """Draws leaves that touch the picture, float32, [leaves, 3] as in `_fall`."""
    smallest, largest = fine / 21, fine * 0.7
    u = rng.random((3, LEAVES_PER_DRAW), np.float32)
    # This is the inverse of the distribution function of the density r^-3 on [smallest, largest].
    radius = 1 / np.sqrt(smallest**-2 - u[2] * (smallest**-2 - largest**-2))
    # Centres may lie outside by up to the largest radius. Otherwise large leaves would be too rare at the border.
    centre = u[:2] * (fine + 2 * largest) - largest
    touching = (np.abs(centre - fine / 2) - fine / 2 < radius).all(0)
    leaves: np.ndarray = np.stack([*centre, radius], axis=1)[touching]
    return leaves
