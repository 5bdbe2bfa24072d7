"""Images: their sources, and the batches of training and evaluation.

What needs torch is imported when it is first used, since a process that decodes images does without.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeflow.data.batches import Batches, dequantization_noise, dequantize, dequantized_batches
    from pipeflow.data.image_data import ImageData
    from pipeflow.data.leaves import dead_leaves
    from pipeflow.data.sources import load_data
    from pipeflow.data.stored import StoredImages

__all__ = [
    "Batches", "ImageData", "StoredImages", "dead_leaves", "dequantization_noise", "dequantize", "dequantized_batches",
    "load_data",
]  # fmt: skip

_PLACES = {
    "Batches": "batches",
    "ImageData": "image_data",
    "StoredImages": "stored",
    "dead_leaves": "leaves",
    "dequantization_noise": "batches",
    "dequantize": "batches",
    "dequantized_batches": "batches",
    "load_data": "sources",
}

if not TYPE_CHECKING:  # a type checker takes the names from above, and finds misspelt ones

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module 'pipeflow.data' has no attribute {name!r}")
        return getattr(importlib.import_module(f"pipeflow.data.{_PLACES[name]}"), name)
