"""How payloads travel between two ends of a link: gloo, gloo with staging, NCCL."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipeflow.flow.layers import Shape

_HEADER, _PAYLOAD = 1, 2
"""Tags: a payload must not be taken for a header that has been asked for."""


class _Wire:
    """Moves payloads of CPU tensors over gloo. `peer` is the other end's rank.

    `send` and `receive` only begin; the function that they return waits for the end, in another thread.
    """

    def __init__(self, group: dist.ProcessGroup, peer: int):
        self.group = group
        self.peer = peer

    def enter_thread(self) -> None:
        """Called once in each thread that sends or receives: a GPU is chosen for each thread anew."""

    def send_header(self, header: Sequence[int]) -> None:
        dist.send(torch.tensor(header, dtype=torch.int64), self.peer, group=self.group, tag=_HEADER)

    def receive_header(self) -> Callable[[], list[int]]:
        header = torch.empty(4, dtype=torch.int64)
        coming = dist.irecv(header, self.peer, group=self.group, tag=_HEADER)

        def finish() -> list[int]:
            coming.wait()
            return header.tolist()

        return finish

    def ready(self) -> "torch.cuda.Event | None":
        """Marks, on the computing thread, when the payload will have been computed."""
        return None

    def wait_until(self, ready: "torch.cuda.Event | None") -> None:
        """Waits, in a link's thread, for the payload to have been computed."""

    def send(self, payload: Tensor, ready: "torch.cuda.Event | None") -> Callable[[], object]:
        going = dist.isend(payload, self.peer, group=self.group, tag=_PAYLOAD)
        return lambda: (going.wait(), payload)  # which must live until it has gone

    def receive(self, shape: Shape, dtype: torch.dtype) -> Callable[[], "tuple[Tensor, torch.cuda.Event | None]"]:
        payload = torch.empty(shape, dtype=dtype)
        coming = dist.irecv(payload, self.peer, group=self.group, tag=_PAYLOAD)

        def finish() -> tuple[Tensor, None]:
            coming.wait()
            return payload, None

        return finish

    def arrived(self, payload: Tensor, event: "torch.cuda.Event | None") -> None:
        """Makes the computing thread's stream wait for the payload, not the thread."""

    def close(self) -> None:
        """Gives the connection back, once nothing is on its way."""
        dist.destroy_process_group(self.group)


class _StagedWire(_Wire):
    """CUDA tensors over gloo, through pinned memory and on a stream beside the computing one."""

    def __init__(self, group: dist.ProcessGroup, peer: int, device: torch.device):
        super().__init__(group, peer)
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def enter_thread(self) -> None:
        torch.cuda.set_device(self.device)

    def ready(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def wait_until(self, ready: torch.cuda.Event) -> None:
        ready.synchronize()

    def send(self, payload: Tensor, ready: torch.cuda.Event) -> Callable[[], object]:
        staged = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            staged.copy_(payload, non_blocking=True)
            payload.record_stream(self.stream)
        self.stream.synchronize()
        return super().send(staged, ready)

    def receive(self, shape: Shape, dtype: torch.dtype) -> Callable[[], tuple[Tensor, torch.cuda.Event]]:
        staged = torch.empty(shape, dtype=dtype, pin_memory=True)
        coming = dist.irecv(staged, self.peer, group=self.group, tag=_PAYLOAD)

        def finish() -> tuple[Tensor, torch.cuda.Event]:
            coming.wait()
            with torch.cuda.stream(self.stream):
                payload = staged.to(self.device, non_blocking=True)
                return payload, self.stream.record_event()

        return finish

    def arrived(self, payload: Tensor, event: torch.cuda.Event) -> None:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        payload.record_stream(stream)


class _NcclWire(_StagedWire):
    """CUDA tensors over NCCL; headers stay on gloo."""

    def __init__(self, group: dist.ProcessGroup, nccl: dist.ProcessGroup, peer: int, device: torch.device):
        super().__init__(group, peer, device)
        self.nccl = nccl

    def send(self, payload: Tensor, ready: torch.cuda.Event) -> Callable[[], object]:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            dist.isend(payload, self.peer, group=self.nccl).wait()
            payload.record_stream(self.stream)
            return self.stream.record_event().synchronize

    def receive(self, shape: Shape, dtype: torch.dtype) -> Callable[[], tuple[Tensor, torch.cuda.Event]]:
        with torch.cuda.stream(self.stream):
            payload = torch.empty(shape, dtype=dtype, device=self.device)
            dist.irecv(payload, self.peer, group=self.nccl).wait()
            event = self.stream.record_event()
        return lambda: (payload, event)

    def close(self) -> None:
        torch.cuda.synchronize(self.device)
        dist.destroy_process_group(self.nccl)
        super().close()


def make_wire(group: dist.ProcessGroup, nccl: dist.ProcessGroup | None, peer: int, device: torch.device) -> _Wire:
    """The way payloads take: NCCL where there is a group for it, else gloo, staged for a GPU."""
    if nccl is not None:
        return _NcclWire(group, nccl, peer, device)
    return _StagedWire(group, peer, device) if device.type == "cuda" else _Wire(group, peer)
