"""Small data that are drawn here: points of a plane, and rows of a table. Functions for `data.name`.

data: {name: "pipeflow.data.toys:two_moons"}
"""

import dataclasses

import numpy as np
import torch

from pipeflow.config import DataConfig
from pipeflow.data.image_data import ImageData

NUM_TRAIN, NUM_TEST = 8192, 2048
_SEED = 1


def two_moons(options: DataConfig) -> ImageData:
    """Points on two half circles that reach into each other, with noise: float32, [points, 2]; the classes upper, lower."""
    rng = np.random.default_rng(_SEED)
    angle = np.pi * rng.random(NUM_TRAIN + NUM_TEST)
    is_lower = rng.random(len(angle)) < 0.5
    x = np.where(is_lower, 1 - np.cos(angle), np.cos(angle))
    y = np.where(is_lower, 0.5 - np.sin(angle), np.sin(angle))
    moons = _split(np.stack([x, y], axis=1) + rng.normal(0, 0.08, (len(angle), 2)), "two_moons")
    train, test = torch.from_numpy(is_lower.astype(np.int64)).split([NUM_TRAIN, NUM_TEST])
    return dataclasses.replace(moons, train_labels=train, test_labels=test, classes=("upper", "lower"))


def weather(options: DataConfig) -> ImageData:
    """Rows of a made-up weather station, in five units: float32, [hours, 5].

    temperature (°C), relative humidity (%), pressure (hPa), wind (m/s), sunshine (W/m²). They depend on each other, and all
    but the pressure are skewed: that is what a flow has to learn.
    """
    rng = np.random.default_rng(_SEED)
    num = NUM_TRAIN + NUM_TEST
    season, hour = rng.uniform(0, 2 * np.pi, num), rng.uniform(0, 2 * np.pi, num)
    pressure = rng.normal(1014, 9, num)
    clouds = 1 / (1 + np.exp((pressure - 1012) / 6 + rng.normal(0, 1, num)))
    height = np.sin(0.65 + 0.35 * np.sin(season)) * np.cos(hour)
    sunshine = 950 * np.log1p(np.exp(6 * height)) / 6 * (1 - 0.7 * clouds) * rng.uniform(0.9, 1.1, num)
    wind = rng.gamma(2.5, 1.2 + 2.5 * clouds)
    temperature = 10 + 9 * np.sin(season) + sunshine / 140 - 3 * (1 - clouds) * (height < 0) + rng.normal(0, 2, num)
    humidity = 100 / (1 + np.exp(temperature / 9 - 2.2 - 1.5 * clouds + rng.normal(0, 0.3, num)))
    return _split(np.stack([temperature, humidity, pressure, wind, sunshine], axis=1), "weather")


def _split(rows: np.ndarray, name: str) -> ImageData:
    train, test = torch.from_numpy(rows.astype(np.float32)).split([NUM_TRAIN, NUM_TEST])
    return ImageData(train, test, name)
