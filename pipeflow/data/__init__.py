"""Images: their sources, and the batches of training and evaluation."""

from pipeflow.data.batches import Batches, dequantization_noise, dequantize, dequantized_batches
from pipeflow.data.dead_leaves import dead_leaves
from pipeflow.data.image_data import ImageData
from pipeflow.data.sources import load_data

__all__ = [
    "Batches", "ImageData", "dead_leaves", "dequantization_noise", "dequantize", "dequantized_batches", "load_data",
]  # fmt: skip
