"""A copy of a worker's tensors at one moment, in host memory, laid out as the safetensors file that is written from it.

The training goes on as soon as they are copied; the file is written from the copy, and needs no other.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipeflow.rundir.tensor_file import lay_out

_CHUNK_BYTES = 8 * 2**20
"""Bytes written at a time: many, so that the thread seldom asks for the interpreter, and soon handed over."""


class Snapshot:
    """Memory for a copy of a worker's tensors, as large as their file, taken at the first checkpoint and used again."""

    def __init__(self) -> None:
        self._layout: list[tuple[str, torch.dtype, torch.Size]] = []
        self._header = b""
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._size = 0
        self._copies: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the tensors, contiguous.

        From a GPU they are copied behind what it is computing and before its next update, while the caller goes on.
        """
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
        if layout != self._layout:
            self._lay_out(tensors, on_gpu)
            self._layout = layout
        if tensors:
            sources = [tensors[name] for name in self._copies]
            torch._foreach_copy_(list(self._copies.values()), sources, non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if on_gpu else None

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Gives the file piece by piece, once the copies are there."""
        if self._copied is not None:
            self._copied.synchronize()
        yield self._header
        content = self._memory.numpy().data[: self._size]
        for start in range(0, self._size, _CHUNK_BYTES):
            yield content[start : start + _CHUNK_BYTES]

    def _lay_out(self, tensors: Mapping[str, Tensor], on_gpu: bool) -> None:
        layout = {name: (value.dtype, value.shape) for name, value in tensors.items()}
        self._header, offsets = lay_out(layout)
        end = max((end for _, end in offsets.values()), default=0)
        if end > len(self._memory):
            self._copies = {}
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self._memory = torch.empty(end, dtype=torch.uint8, pin_memory=on_gpu)
        self._size = end
        self._copies = {
            name: self._memory[slice(*place)].view(tensors[name].dtype).view(tensors[name].shape)
            for name, place in offsets.items()
        }
