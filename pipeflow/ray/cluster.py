"""The Ray cluster before a run: whether it can be reached, and whether the workers have room on it.

Ray itself retries both for minutes or for ever, because a head or a node may yet come.
"""

import dataclasses
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from pipeflow.config import Config
from pipeflow.errors import ConfigError

Resources = Mapping[str, float]
"""Resources of a node, `{"CPU": 8.0, "GPU": 1.0, ...}`."""

_PROBE_SECONDS = 10.0


def check_installed() -> None:
    """Raises ConfigError where Ray is not installed: it is an extra of pipeflow."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed in this environment: pip install 'ray[default,train,tune]'.")


def connect() -> None:
    """Connects this process to the cluster of RAY_ADDRESS, or else to the one that runs on this machine.

    Raises ConfigError where there is none, or it cannot be reached.
    """
    import ray
    from ray._private.services import get_ray_address_from_environment
    from ray.exceptions import AuthenticationError

    try:
        address = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        raise ConfigError(
            "no Ray cluster is running here: start one, `ray start --head`, or set RAY_ADDRESS."
        ) from None
    name = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "the Ray cluster that was started here last"
    probe(name, address)
    try:
        ray.init("auto")
    except ValueError:
        raise ConfigError(
            f"{name}: {address!r} is not the address of a Ray cluster: set it to the one that `ray start --head` prints, "
            f"such as 192.0.2.1:6379 (the dashboard has another)."
        ) from None
    except (ConnectionError, AuthenticationError):
        raise ConfigError(
            f"{name}: something listens at {address} but does not let this process in: is it the head of a Ray cluster, "
            f"and are RAY_AUTH_MODE and the token (RAY_AUTH_TOKEN or ~/.ray/auth_token) those of the cluster?"
        ) from None


def probe(name: str, address: str) -> None:
    """Raises ConfigError where nobody listens at a cluster's address, `host:port` or `ray://host:port`.

    Any other form of an address is left to Ray, which knows at once what it thinks of it. name: where it stands.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if not host or not port:
        return
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except (socket.gaierror, UnicodeError):  # the second for a name that none can have, a..b
        why = f"the name {host} cannot be resolved"
    except OSError as error:
        why = f"nobody answers at {host}, port {port} ({error.strerror or 'timed out'})"
    else:
        return
    raise ConfigError(
        f"{name}: {address}: {why}. Start the cluster, `ray start --head`, and set RAY_ADDRESS to the address that it "
        f"prints."
    )


@dataclasses.dataclass(frozen=True)
class Demand:
    """Resources that a run asks a cluster for."""

    workers: int
    cpus: int
    """CPUs of each worker."""
    gpus: int
    """GPUs of each worker."""

    def room(self, nodes: Sequence[Resources]) -> int:
        """Number of such workers for which the nodes have room. A worker's resources are all on one node."""
        each = {"CPU": self.cpus, "GPU": self.gpus}
        return sum(min(int(node.get(name, 0) // need) for name, need in each.items() if need) for node in nodes)

    def missing(self, nodes: Sequence[Resources], has: str = "the cluster has") -> str | None:
        """The resources that the nodes lack, in words; None where all workers have room on them."""
        if self.room(nodes) >= self.workers:
            return None
        lacking = []
        for name, need in (("CPU", self.cpus * self.workers), ("GPU", self.gpus * self.workers)):
            there = _total(nodes, name)
            if need > there:
                lacking.append(f"{_count(need, name)}, {has} {there:g}")
        if lacking:
            return f"{_count(self.workers, 'worker')} need{'s' * (self.workers == 1)} {', and '.join(lacking)}"
        each = _count(self.cpus, "CPU") + (f" and {_count(self.gpus, 'GPU')}" if self.gpus else "")
        return (
            f"{each} of one node for each of {_count(self.workers, 'worker')}, the cluster's nodes have room for "
            f"{self.room(nodes)}"
        )


def check_room(config: Config, demand: Demand, wait: bool) -> None:
    """Looks whether the cluster that this process is connected to has what the workers need.

    Resources that others use now are not missing: Ray waits for them, and a line says so.

    Raises ConfigError where it has not, unless `wait`.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    missing = demand.missing(nodes)
    if missing is None:
        missing = demand.missing([ray.available_resources()], has="free are")
        if missing is not None:
            _say(f"waiting for resources that others use now: {missing}.")
    elif wait:
        _say(f"waiting for more nodes: {missing}.")
    else:
        ways = [*ways_out(config, demand, nodes), "--wait if more nodes will come"]
        raise ConfigError(f"--workers: {missing}: {', or '.join(ways)}.")


def ways_out(config: Config, demand: Demand, nodes: Sequence[Resources]) -> list[str]:
    """Options with which a run that has no room on the nodes would have."""
    ways = []
    for workers in range(demand.room(nodes), 0, -1):
        if _may_have(config, workers):
            ways.append(f"--workers {workers}")
            break
    for cpus in range(demand.cpus - 1, 0, -1):
        if dataclasses.replace(demand, cpus=cpus).missing(nodes) is None:
            ways.append(f"--cpus-per-worker {cpus}")
            break
    if demand.gpus and dataclasses.replace(demand, gpus=0).missing(nodes) is None:
        ways.append("--run.device cpu")
    return ways


def _may_have(config: Config, workers: int) -> bool:
    try:
        config.check_world_size(workers)
    except ConfigError:
        return False
    return True


def _total(nodes: Sequence[Resources], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
