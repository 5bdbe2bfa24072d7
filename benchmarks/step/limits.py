"""What the device can do at best: multiply-adds of matrices, and bytes of memory, a second. Measured, not looked up.

    python -m benchmarks.step.limits [--device cpu|cuda] [--threads 2]

Matrices: the best of several shapes and of products and convolutions, for they are different libraries' kernels, and which
is quickest depends on the processor. Memory: the best of a copy and a triad over arrays far larger than the caches.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from pipeflow.device import choose_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LEAST_CALLS = 4
_SIDES = {"cpu": (1024, 1536), "cuda": (4096, 8192)}
_IMAGES = {"cpu": 16, "cuda": 512}
_ARRAY_BYTES = {"cpu": 2**28, "cuda": 2**30}


class Limits:
    """Measured anew in each round, so that it is of the same minutes as what is held against it."""

    def __init__(self, device: str, seconds: float = 0.5):
        """seconds: for which each way is tried, but at least a few times."""
        self._device = choose_device(device)
        self._seconds_a_way = seconds

    def measure(self) -> dict:
        """`flops` by dtype (two for a multiply-add) and `bytes`, both a second, and which way was the best."""
        flops, ways = {}, {}
        for name, dtype in DTYPES.items():
            rates = {way: operations / self._seconds(run) for way, operations, run in self._products(dtype)}
            ways[name] = max(rates, key=rates.get)
            flops[name] = rates[ways[name]]
        rates = {way: moved / self._seconds(run) for way, moved, run in self._copies()}
        ways["bytes"] = max(rates, key=rates.get)
        return {"flops": flops, "bytes": rates[ways["bytes"]], "ways": ways}

    def _products(self, dtype: torch.dtype) -> Iterator[tuple[str, int, Callable]]:
        """Name, operations, and a call that does them."""
        for side in _SIDES[self._device.type]:
            a, b = (torch.randn(side, side, device=self._device).to(dtype) for _ in range(2))
            yield f"product of {side}x{side}", 2 * side**3, lambda a=a, b=b: a @ b
        for kernel, layout in ((1, torch.channels_last), (3, torch.channels_last), (3, torch.contiguous_format)):
            channels, size, num = 512, 16, _IMAGES[self._device.type]
            x = torch.randn(num, channels, size, size, device=self._device).to(dtype, memory_format=layout)
            weight = torch.randn(channels, channels, kernel, kernel, device=self._device)
            weight = weight.to(dtype, memory_format=layout)
            name = "channels last" if layout is torch.channels_last else "channels first"
            operations = 2 * num * size**2 * channels**2 * kernel**2
            yield (
                f"{kernel}x{kernel} convolution, {name}",
                operations,
                lambda x=x, weight=weight, pad=kernel // 2: functional.conv2d(x, weight, padding=pad),
            )

    def _copies(self) -> Iterator[tuple[str, int, Callable]]:
        numel = _ARRAY_BYTES[self._device.type] // 4
        a, b, c = (torch.ones(numel, device=self._device) for _ in range(3))
        yield "copy", 2 * 4 * numel, lambda: a.copy_(b)
        yield "triad", 3 * 4 * numel, lambda: torch.add(b, c, alpha=3.0, out=a)

    @torch.no_grad()
    def _seconds(self, run: Callable) -> float:
        """Of the quickest call."""
        times: list[float] = []
        while len(times) < _LEAST_CALLS or sum(times) < self._seconds_a_way:
            times.append(seconds_of(run, self._device))
        return min(times)


def seconds_of(run: Callable, device: torch.device) -> float:
    """Of one call, to the end of what it asks of the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def best(rounds: list[dict]) -> dict:
    """The limits over all rounds: whatever disturbed one of them is none of the device's."""
    flops, ways = {}, {}
    for name in DTYPES:
        top = max(rounds, key=lambda each: each["flops"][name])
        flops[name], ways[name] = top["flops"][name], top["ways"][name]
    top = max(rounds, key=lambda each: each["bytes"])
    return {"flops": flops, "bytes": top["bytes"], "ways": {**ways, "bytes": top["ways"]["bytes"]}}


def main() -> None:
    """Prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = Limits(options.device).measure()
    for name, rate in found["flops"].items():
        print(f"{name}: {rate / 1e9:,.0f} Gflop/s ({found['ways'][name]})")
    print(f"memory: {found['bytes'] / 1e9:,.1f} GB/s ({found['ways']['bytes']})")


if __name__ == "__main__":
    main()
