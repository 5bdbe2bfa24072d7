"""Workers as torchrun starts them, forked from a server that has imported torch once: a start costs tenths of a second.

The server is multiprocessing's forkserver. It forks an agent for each launch, and the agent forks the workers: it holds the
store that they meet at, ends the others when one fails, passes SIGTERM on, and ends all of them when the test is gone.
Nothing of pipeflow may be imported here: a worker remembers who its parent was when it imported pipeflow.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import NoReturn

MAIN = "pipeflow.launch:main"
GRACE_SECONDS = 10.0
"""How long workers may take to end after SIGTERM."""

NOTICE_SECONDS = 0.5
"""How long the others go on after one has failed, as under torchrun, so that who would say the same error again does."""

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    ["torch", "torch.distributed", "torch._dynamo", "torch.utils.tensorboard", "numpy", "yaml"]
    + ["safetensors.torch", "rich.progress"]
)


class Launch:
    """A group of workers, with the methods of `subprocess.Popen`: its process is the agent."""

    def __init__(
        self,
        num_workers: int | None,
        *arguments: str,
        entry: str = MAIN,
        cwd: str | os.PathLike = ".",
        prepare: Sequence[str] = (),
        **environment: str,
    ):
        """Calls `entry` ('module:function') with the arguments in each worker.

        num_workers: None for one process that no launcher started.
        prepare: function and arguments of what the agent does before it starts the workers; not one that imports pipeflow.
        """
        output, output_end = _FORKSERVER.Pipe(duplex=False)
        self._told, told_end = _FORKSERVER.Pipe(duplex=False)
        request = (num_workers, entry, arguments, {**os.environ, **environment}, os.path.abspath(cwd), prepare)
        self._process = _FORKSERVER.Process(target=_agent, args=(*request, output_end, told_end), daemon=True)
        self._process.start()
        output_end.close()
        told_end.close()
        self.stdout = os.fdopen(os.dup(output.fileno()), errors="replace")
        output.close()
        self.pid = self._process.pid
        self.workers: list[int] = self._told.recv()
        """Processes of the workers, by rank."""

    @property
    def returncode(self) -> int | None:
        """The agent's: 1 where a worker failed; that of the process itself where no launcher started it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def exit_codes(self) -> list[int]:
        """The workers' own, by rank, once all have ended; those of killed ones are negative."""
        return self._told.recv()

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What was printed since, when all have ended."""
        output = self.stdout.read()
        self.wait(timeout)
        return output, None

    def send_signal(self, number: int) -> None:
        """To the agent."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Ends whatever is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        self.stdout.close()
        self._told.close()


def _agent(
    num_workers: int | None,
    entry: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    cwd: str,
    prepare: Sequence[str],
    output: Connection,
    told: Connection,
) -> NoReturn:
    from torch.distributed import TCPStore

    os.setsid()
    for end in (1, 2):
        os.dup2(output.fileno(), end)
    output.close()
    # Where another test has started the server first, it may have imported these, and remember its own parent.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeflow", "benchmarks")]:
        del sys.modules[name]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    if prepare:
        _function(prepare[0])(*prepare[1:])
    signals = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    workers = {}
    for rank in range(num_workers or 1):
        pid = os.fork()
        if pid == 0:
            listener.close()
            told.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            if num_workers is not None:
                os.environ.update(_environment_of(rank, num_workers, port))
            _work(entry, list(arguments))
        workers[pid] = rank
    told.send([*workers])
    if num_workers is None:
        listener.close()
    else:
        given = {"is_master": True, "wait_for_workers": False, "timeout": timedelta(seconds=60)}
        _store = TCPStore("127.0.0.1", port, master_listen_fd=listener.detach(), **given)
    codes = _watch(workers)
    with contextlib.suppress(OSError):
        told.send([codes[rank] for rank in sorted(codes)])
    failed = {rank: code for rank, code in codes.items() if code}
    if num_workers is None:
        os._exit(codes[0] % 256)
    if failed:
        os.write(2, "".join(f"worker {rank} ended with {code}\n" for rank, code in failed.items()).encode())
    os._exit(1 if failed else 0)


def _environment_of(rank: int, num_workers: int, port: int) -> dict[str, str]:
    """What torchrun sets in each of its workers."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "ROLE_RANK": str(rank),
        "WORLD_SIZE": str(num_workers), "LOCAL_WORLD_SIZE": str(num_workers), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": f"test-{os.getppid()}-{port}", "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def _work(entry: str, arguments: list[str]) -> NoReturn:
    """A worker's life."""
    code = 1
    try:
        sys.argv = [entry, *arguments]
        code = _function(entry)(arguments) or 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _function(name: str) -> Callable:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _watch(workers: dict[int, int]) -> dict[int, int]:
    """Waits until all have ended; their exit codes by rank. A failure, SIGTERM, or the end of the test ends the others."""
    test = multiprocessing.parent_process().sentinel
    codes: dict[int, int] = {}
    failed_at = deadline = None
    while len(codes) < len(workers):
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, 0.2)
        for pid in [pid for pid, rank in workers.items() if rank not in codes]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[workers[pid]] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) and failed_at is None:
            failed_at = time.monotonic()
        is_over = failed_at is not None and time.monotonic() > failed_at + NOTICE_SECONDS
        is_over = is_over or wait([test], 0) or (got is not None and got.si_signo == signal.SIGTERM)
        running = [pid for pid, rank in workers.items() if rank not in codes]
        if is_over and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
            _send(running, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _send(running, signal.SIGKILL)
    return codes


def _send(processes: list[int], number: int) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
