"""One system's training in the process that holds it: its first step, turns of steps, and the memory it took."""

import ctypes
import math
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.pipelines.measure import peak_memory
from benchmarks.step.systems import NORMFLOWS, Case, Images, PipeflowStep, configuration
from pipeflow.device import choose_device

WARM_UP = {"cpu": 1, "cuda": 6}
"""Least steps behind the first; the GPU's are short."""
_SETTLED, _MOST_STEPS, _MOST_SECONDS = 1.3, 24, 30.0
"""A system is warm when a step takes no longer than so many times its quickest, and after so many steps or seconds in any
case; compilers look again at a second shape."""


class Training:
    """Built where it is to run: see `Held`."""

    def __init__(self, case: Case, system: str, options: dict):
        self._device = choose_device(case.device)
        self._batch_size = case.batch_size
        images = Images(configuration(case, {}), self._device)
        _load_libraries(self._device)
        self._before = _resident()
        if system in NORMFLOWS:
            # The package is an option of the installation: only its own process needs it.
            from benchmarks.step.rival import NormflowsStep

            self._step = NormflowsStep(case, options, images, self._device)
        else:
            self._step = PipeflowStep(case, options, images, self._device)

    def start(self) -> dict:
        """The first step, and those that warm up; what does not change from turn to turn."""
        first, loss = self._steps(1)
        times: list[float] = []
        while len(times) <= WARM_UP[self._device.type] or (
            times[-1] > _SETTLED * min(times) and len(times) < _MOST_STEPS and sum(times) < _MOST_SECONDS
        ):
            times.append(self._steps(1)[0])
        self._give_memory_back()
        return {
            "first_step_s": first,
            "warm_up_s": sum(times[:-1]),
            "step_s": times[-1],
            "loss": loss,
            "num_parameters": self._step.num_parameters,
            "multiply_adds": self._step.multiply_adds,
        }

    def turn(self, num_steps: int) -> float:
        """Images a second over so many steps, behind one that is not counted.

        Raises ArithmeticError where the loss is no longer a number: that is no training to be timed.
        """
        self._steps(1)
        seconds, loss = self._steps(num_steps)
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss}")
        self._give_memory_back()
        return num_steps * self._batch_size / seconds

    def memory(self) -> dict:
        """Bytes held at most: of the process above what it held before it had a flow, or of tensors on the GPU.

        And the error with which `memory.activations: invert` gets activations back, None for other ways.
        """
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = peak_memory() - self._before
        return {"bytes": peak, "reconstruction_error": self._step.reconstruction_error}

    def _steps(self, number: int) -> tuple[float, float]:
        """Seconds, and the last loss: taking it waits for the GPU."""
        start = time.perf_counter()
        for _ in range(number):
            loss = self._step()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start, float(loss)

    def _give_memory_back(self) -> None:
        """Others are alive on the same machine: what this one has freed is theirs until its next turn."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _load_libraries(device: torch.device) -> None:
    """Makes torch import and allocate what any first step needs: 150 MB on the CPU that are no flow's."""
    conv = nn.Conv2d(3, 3, 3).to(device)
    optimizer = torch.optim.Adam(conv.parameters())
    conv(torch.ones(1, 3, 8, 8, device=device)).sum().backward()
    optimizer.step()


def _resident() -> int:
    """Bytes this process holds now, from where its peak is counted anew; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()
