"""The layout of a safetensors file, for those that are written piece by piece."""

import json
import math
from collections.abc import Mapping

import torch

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in the header."""


def lay_out(
    tensors: Mapping[str, tuple[torch.dtype, torch.Size]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header, and where behind it each tensor begins and ends, in the order in which they are written.

    The largest elements come first, so that each tensor is aligned for its type whatever the others' sizes.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    offsets, end = {}, 0
    for name in names:
        dtype, shape = tensors[name]
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        offsets[name] = (begin, end)
    about: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for name in names:
        dtype, shape = tensors[name]
        about[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": list(offsets[name])}
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
