"""Wires move payloads between the two ends of a link: over gloo, gloo with staging, or NCCL."""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from pipeflow.flow.layers import Shape

_HEADER, _PAYLOAD = 1, 2
"""Tags, so that a payload is not taken for a header that has been asked for."""

Header: TypeAlias = tuple[int, int, int, int, int]
"""Kind, epoch, step, micro-batch and number of images."""
Event: TypeAlias = torch.cuda.Event


class Wire:
    """Moves payloads of CPU tensors over gloo.

    `send` and `receive` only begin; the function that they return waits for the end, in another thread.
    """

    def __init__(self, group: dist.ProcessGroup, peer: int):
        """peer: the other end's rank."""
        self.group = group
        self.peer = peer

    def enter_thread(self) -> None:
        """Called once in each thread that sends or receives, since a GPU is chosen for each thread anew."""

    def send_header(self, header: Header) -> None:
        """Sends a header, and returns when it has gone."""
        dist.send(torch.tensor(header, dtype=torch.int64), self.peer, group=self.group, tag=_HEADER)

    def receive_header(self) -> Callable[[], Header]:
        """Asks for a header."""
        header = torch.empty(5, dtype=torch.int64)
        receiving = _begin_receive(header, self.peer, self.group, _HEADER)

        def finish() -> Header:
            receiving.wait()
            kind, epoch, step, micro_batch, num_images = header.tolist()
            return kind, epoch, step, micro_batch, num_images

        return finish

    def record_event(self) -> Event | None:
        """An event of the computing thread's stream, behind the computation of a payload; None on the CPU."""
        return None

    def send(self, payload: Tensor) -> Callable[[], object]:
        """Begins to send a payload that has been computed."""
        sending = _begin_send(payload, self.peer, self.group, _PAYLOAD)
        return lambda: (sending.wait(), payload)  # the payload must live until it has gone

    def receive(self, shape: Shape, dtype: torch.dtype) -> Callable[[], tuple[Tensor, Event | None]]:
        """Begins to receive a payload; the function returns it with the event of its arrival on the device."""
        payload = torch.empty(shape, dtype=dtype)
        receiving = _begin_receive(payload, self.peer, self.group, _PAYLOAD)

        def finish() -> tuple[Tensor, None]:
            receiving.wait()
            return payload, None

        return finish

    def use_after(self, payload: Tensor, arrived: Event | None) -> None:
        """Makes the computing thread's stream, not the thread, wait for the payload."""
        if arrived is not None:
            stream = torch.cuda.current_stream(payload.device)
            stream.wait_event(arrived)
            payload.record_stream(stream)

    def close(self) -> None:
        """Gives the connection back, once nothing is on its way."""
        dist.destroy_process_group(self.group)


class StagedWire(Wire):
    """CUDA tensors over gloo, through pinned memory and on a stream beside the computing one."""

    def __init__(self, group: dist.ProcessGroup, peer: int, device: torch.device):
        super().__init__(group, peer)
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def enter_thread(self) -> None:
        torch.cuda.set_device(self.device)

    def record_event(self) -> Event:
        event: Event = torch.cuda.current_stream(self.device).record_event()
        return event

    def send(self, payload: Tensor) -> Callable[[], object]:
        staged = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        with torch.cuda.stream(self.stream):
            staged.copy_(payload, non_blocking=True)
            payload.record_stream(self.stream)
        self.stream.synchronize()
        return super().send(staged)

    def receive(self, shape: Shape, dtype: torch.dtype) -> Callable[[], tuple[Tensor, Event]]:
        staged = torch.empty(shape, dtype=dtype, pin_memory=True)
        receiving = _begin_receive(staged, self.peer, self.group, _PAYLOAD)

        def finish() -> tuple[Tensor, Event]:
            receiving.wait()
            with torch.cuda.stream(self.stream):
                payload = staged.to(self.device, non_blocking=True)
                return payload, self.stream.record_event()

        return finish


class NcclWire(StagedWire):
    """CUDA tensors over NCCL; headers stay on gloo."""

    def __init__(self, group: dist.ProcessGroup, nccl: dist.ProcessGroup, peer: int, device: torch.device):
        super().__init__(group, peer, device)
        self.nccl = nccl

    def send(self, payload: Tensor) -> Callable[[], object]:
        with torch.cuda.stream(self.stream):
            _begin_send(payload, self.peer, self.nccl).wait()
            payload.record_stream(self.stream)
            sent: Event = self.stream.record_event()
        return sent.synchronize

    def receive(self, shape: Shape, dtype: torch.dtype) -> Callable[[], tuple[Tensor, Event]]:
        with torch.cuda.stream(self.stream):
            payload = torch.empty(shape, dtype=dtype, device=self.device)
            _begin_receive(payload, self.peer, self.nccl).wait()
            arrived: Event = self.stream.record_event()
        return lambda: (payload, arrived)

    def close(self) -> None:
        torch.cuda.synchronize(self.device)
        dist.destroy_process_group(self.nccl)
        super().close()


def make_wire(group: dist.ProcessGroup, nccl: dist.ProcessGroup | None, peer: int, device: torch.device) -> Wire:
    """NCCL where there is a group for it, else gloo, staged for a GPU."""
    if nccl is not None:
        return NcclWire(group, nccl, peer, device)
    return StagedWire(group, peer, device) if device.type == "cuda" else Wire(group, peer)


def _begin_send(tensor: Tensor, peer: int, group: dist.ProcessGroup, tag: int = 0) -> dist.Work:
    work = dist.isend(tensor, peer, group=group, tag=tag)
    assert work is not None  # None is for ranks outside of the group
    return work


def _begin_receive(tensor: Tensor, peer: int, group: dist.ProcessGroup, tag: int = 0) -> dist.Work:
    work = dist.irecv(tensor, peer, group=group, tag=tag)
    assert work is not None
    return work
