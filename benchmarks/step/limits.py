"""How many multiply-adds of matrices, and bytes of memory, the device manages a second at best. Measured, not looked up.

    python -m benchmarks.step.limits [--device cpu|cuda] [--seconds 0.5] [--threads 2]

Matrices: the best of products and convolutions of several shapes, for they are different libraries' kernels, and which
is quickest depends on the processor. Memory: the best of a copy and a triad over arrays far larger than the caches.

Each kind begins small and grows for as long as its seconds last, so that a slow device takes no longer than a quick one.
bfloat16 is not measured on a processor that has no arithmetic for it (`pipeflow.device.has_bfloat16`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.by_device import make_parser
from pipeflow.device import choose_device, has_bfloat16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NUM_CALLS = 4
_SIDES = {"cpu": (128, 256, 512, 1024, 1536), "cuda": (512, 1024, 2048, 4096, 8192)}
_IMAGES = {"cpu": ((1, 64), (2, 128), (4, 256), (16, 512)), "cuda": ((16, 128), (64, 256), (512, 512))}
"""Numbers of images of 16x16 pixels and of channels."""
_ARRAY_BYTES = {"cpu": (2**20, 2**24, 2**26, 2**28), "cuda": (2**26, 2**28, 2**30)}


class Work(NamedTuple):
    """Something to be timed."""

    name: str
    amount: int
    """Operations, or bytes that move, in one call."""
    run: Callable[[], Tensor]


class Limits:
    """Measured anew in each round, so that it is of the same minutes as what is held against it."""

    def __init__(self, device: str, seconds: float = 0.5, bfloat16: bool | None = None):
        """seconds: for which each kind of work is tried, about.

        bfloat16: whether the device has arithmetic for it; None: looked up.
        """
        self._device = choose_device(device)
        self._seconds = seconds
        self._bfloat16 = has_bfloat16(self._device) if bfloat16 is None else bfloat16

    def measure(self) -> dict:
        """`flops` by dtype (two for a multiply-add) and `bytes`, both a second, and by which work, `ways`.

        `flops` has no `bfloat16` where the device has no arithmetic for it.
        """
        flops, ways = {}, {}
        for name, dtype in DTYPES.items():
            if name == "float32" or self._bfloat16:
                found = [self._best(kind) for kind in (self._products(dtype), *self._convolutions(dtype))]
                flops[name], ways[name] = max(found)
        # Smaller arrays lie in the caches: the largest for which there was time is what counts.
        moved, ways["bytes"] = max(self._grown(kind)[-1] for kind in self._copies())
        return {"flops": flops, "bytes": moved, "ways": ways}

    def _best(self, works: Iterator[Work]) -> tuple[float, str]:
        return max(self._grown(works))

    @torch.no_grad()
    def _grown(self, works: Iterator[Work]) -> list[tuple[float, str]]:
        """The rates of works that grow, and their names, up to the last that there was time for.

        The smallest is measured in any case, and the next only if it should take no longer than what is left. The last one
        gets the rest of the time.
        """
        end, found = 0.0, []
        for work in works:
            if found and time.perf_counter() + (1 + _NUM_CALLS) * work.amount / found[-1][0] > end:
                break
            work.run()  # libraries choose their kernels at a first call
            end = end or time.perf_counter() + self._seconds
            quickest = min(seconds_of(work.run, self._device) for _ in range(_NUM_CALLS))
            last = work
            found.append((work.amount / quickest, work.name))
        while time.perf_counter() + last.amount / found[-1][0] < end:
            rate = last.amount / seconds_of(last.run, self._device)
            found[-1] = max(found[-1], (rate, last.name))
        return found

    def _products(self, dtype: torch.dtype) -> Iterator[Work]:
        for side in _SIDES[self._device.type]:
            a, b = (torch.randn(side, side, device=self._device).to(dtype) for _ in range(2))
            yield Work(f"product of {side}x{side}", 2 * side**3, lambda a=a, b=b: a @ b)

    def _convolutions(self, dtype: torch.dtype) -> Sequence[Iterator[Work]]:
        kinds = ((1, torch.channels_last), (3, torch.channels_last), (3, torch.contiguous_format))
        return [self._convolution(dtype, kernel, layout) for kernel, layout in kinds]

    def _convolution(self, dtype: torch.dtype, kernel: int, layout: torch.memory_format) -> Iterator[Work]:
        size = 16
        name = f"{kernel}x{kernel} convolution, channels {'last' if layout is torch.channels_last else 'first'}"
        for num, channels in _IMAGES[self._device.type]:
            x = torch.randn(num, channels, size, size, device=self._device).to(dtype, memory_format=layout)
            weight = torch.randn(channels, channels, kernel, kernel, device=self._device)
            weight = weight.to(dtype, memory_format=layout)
            yield Work(
                f"{name}, {channels} wide",
                2 * num * size**2 * channels**2 * kernel**2,
                lambda x=x, weight=weight: functional.conv2d(x, weight, padding=kernel // 2),
            )

    def _copies(self) -> Sequence[Iterator[Work]]:
        return [self._copy(), self._triad()]

    def _copy(self) -> Iterator[Work]:
        for a, b, _ in self._arrays():
            yield Work(f"copy of {a.nbytes / 1e6:.0f} MB", 2 * a.nbytes, lambda a=a, b=b: a.copy_(b))

    def _triad(self) -> Iterator[Work]:
        for a, b, c in self._arrays():
            name = f"triad of {a.nbytes / 1e6:.0f} MB"
            yield Work(name, 3 * a.nbytes, lambda a=a, b=b, c=c: torch.add(b, c, alpha=3.0, out=a))

    def _arrays(self) -> Iterator[list[Tensor]]:
        for num_bytes in _ARRAY_BYTES[self._device.type]:
            yield [torch.ones(num_bytes // 4, device=self._device) for _ in range(3)]


def seconds_of(run: Callable, device: torch.device) -> float:
    """Seconds of one call, to the end of what it asks of the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def best(rounds: list[dict]) -> dict:
    """The limits over all rounds: a disturbance in one of them says nothing of the device."""
    flops, ways = {}, {}
    for name in rounds[0]["flops"]:
        top = max(rounds, key=lambda each: each["flops"][name])
        flops[name], ways[name] = top["flops"][name], top["ways"][name]
    top = max(rounds, key=lambda each: each["bytes"])
    return {"flops": flops, "bytes": top["bytes"], "ways": {**ways, "bytes": top["ways"]["bytes"]}}


def main() -> None:
    """Prints them."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each kind of work")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = Limits(options.device, options.seconds).measure()
    for name in DTYPES:
        if name in found["flops"]:
            print(f"{name}: {found['flops'][name] / 1e9:,.0f} Gflop/s ({found['ways'][name]})")
        else:
            print(f"{name}: not measured, for the processor has no arithmetic for it")
    print(f"memory: {found['bytes'] / 1e9:,.1f} GB/s ({found['ways']['bytes']})")


if __name__ == "__main__":
    main()
