"""Arrays of NumPy's format that nobody vouches for: the header is looked at first, and nothing is unpickled."""

import io
import math
from dataclasses import dataclass

import numpy as np

MAX_HEADER_BYTES = 16_384
"""Most bytes of a header that are looked at. NumPy writes 128."""


@dataclass(frozen=True)
class NpyHeader:
    """The header of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    """Whether the first index changes fastest."""
    size: int
    """Bytes of the header, behind which the values begin."""

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, values: bytes | bytearray) -> np.ndarray:
        """The array of these values, of `nbytes`."""
        return np.frombuffer(values, self.dtype).reshape(self.shape, order="F" if self.is_fortran else "C")


def read_header(start: bytes) -> NpyHeader:
    """Reads the header from the first `MAX_HEADER_BYTES` of a file. Raises ValueError where there is none."""
    header = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(header)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(header)
    except (ValueError, TypeError, LookupError, RuntimeError, MemoryError) as error:
        raise ValueError("it has no header of an array") from error
    return NpyHeader(shape, dtype, is_fortran, header.tell())
