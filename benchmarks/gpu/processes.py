"""Workers on this machine, forked: for runs whose processes should not each import torch anew."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

# Torch must not begin with CUDA in this process, not even to look for a GPU: its forks could not use it.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

# Workers import these at their first step, which takes a second: imported here, they are there in each fork.
import torch._dynamo  # noqa: F401

import pipeflow.training.run  # noqa: F401
from pipeflow.errors import PipeflowError


class WorkerFailed(RuntimeError):
    """A worker ended with an error; the message has its traceback."""


def in_workers(num: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 240.0) -> Sequence[Any]:
    """Calls the function in so many new processes, which find each other as torchrun's workers do; their results by rank.

    This process must not have computed with torch yet: what it has begun on a GPU, or with threads, is lost in a fork.

    Raises WorkerFailed with the traceback of the first that failed, and TimeoutError after timeout_s.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    ends, processes = [], []
    try:
        for rank in range(num):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(there, rank, num, port, function, arguments))
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        return [_result(rank, end, timeout_s) for rank, end in enumerate(ends)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _result(rank: int, end: Connection, timeout_s: float) -> Any:
    if not end.poll(timeout_s):
        raise TimeoutError(f"worker {rank} was not done after {timeout_s:.0f} s")
    try:
        succeeded, value = end.recv()
    except EOFError:
        raise WorkerFailed(f"worker {rank} ended without a word") from None
    if not succeeded:
        raise WorkerFailed(f"worker {rank}: {value}")
    return value


def _work(end: Connection, rank: int, num: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num), LOCAL_WORLD_SIZE=str(num),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        end.send((True, function(*arguments)))
    except PipeflowError as error:
        end.send((False, str(error)))
    except BaseException:
        end.send((False, traceback.format_exc()))
    os._exit(0)  # as the launcher leaves: torch's own threads can abort at the interpreter's end


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
