"""Rank and size of the run, from the launcher's environment. Anything missing is an error: torch would wait, or guess."""

import os
import socket
from dataclasses import dataclass

from pipeflow.errors import ConfigError, WorkerError, first_line

_OTHER_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}
"""Where launchers that do not say who is who say how many processes they start, and what starts them."""


@dataclass(frozen=True)
class Place:
    """This worker among those of the run, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its machine, which picks its GPU."""
    address: str = ""
    port: int = 0
    num_machines: int = 1
    """Machines with a launcher of their own, as far as launchers say that."""
    store_is_worker_0s: bool = False
    """Whether the store through which the workers meet is held by worker 0, instead of by a launcher."""


def read_place() -> Place:
    """The place of this worker; that of a single one where no launcher speaks.

    Raises ConfigError where a launcher says too little, or nonsense.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Place()
    rank, size, local_rank = _number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0, default="0")
    if rank >= size:
        raise ConfigError(f"RANK: {rank}, but WORLD_SIZE is {size}: ranks count from 0.")
    if size == 1:
        return Place(local_rank=local_rank)
    address, port = _text("MASTER_ADDR"), _number("MASTER_PORT", 1)
    store_is_worker_0s = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Place(rank, size, local_rank, address, port, _number("GROUP_WORLD_SIZE", 1, default="1"), store_is_worker_0s)


def _text(name: str, default: str = "") -> str:
    text = os.environ.get(name, default)
    if not text:
        raise ConfigError(
            f"{name}: is not in the environment, which has others of a launcher: start workers with torchrun, which sets "
            f"RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. One process needs none of these: unset them."
        )
    return text


def _number(name: str, least: int, default: str = "") -> int:
    text = _text(name, default)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}: expected a whole number, {least} or more, in the environment, got {text!r}.")
    return int(text)


def check_not_apart() -> None:
    """Raises ConfigError where a launcher starts several processes, of which each would train alone."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return
    for name, launcher in _OTHER_LAUNCHERS.items():
        if os.environ.get(name, "1") != "1":
            raise ConfigError(
                f"{name}: {os.environ[name]} processes, but no RANK says which this is, and each would train alone. Let "
                f"{launcher} start one torchrun a machine (launch/slurm.sh), or one process. For several runs that have "
                f"nothing to do with each other set RANK=0 WORLD_SIZE=1."
            )


def check_address(place: Place) -> None:
    """Raises WorkerError where the name of the machine at which workers meet is not known, which torch tries for long."""
    try:
        socket.getaddrinfo(place.address, place.port)
    except (socket.gaierror, UnicodeError) as error:
        raise WorkerError(
            f"MASTER_ADDR: {place.address} cannot be resolved at worker {place.rank} ({error}). On one machine: "
            f"torchrun --local-addr 127.0.0.1; on several: --local-addr with the first machine's address."
        ) from None


def not_met(place: Place, error: RuntimeError) -> WorkerError:
    """The error of workers that did not come together. error: torch's."""
    if "EADDRINUSE" in str(error):
        return WorkerError(
            f"MASTER_PORT: {place.port} is taken by another process at worker {place.rank}: choose another one, the same "
            f"for all workers."
        )
    return WorkerError(
        f"worker {place.rank}: the {place.size} workers did not find each other at {place.address}:{place.port} "
        f"({first_line(error)}). See what the others print. Are all of them started, and can they reach that address?"
    )
