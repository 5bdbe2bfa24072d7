"""One worker of pipeflow inside a Ray Train worker: its environment, its work, and its reports to Ray."""

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.util
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig
from ray.util.metrics import Counter, Gauge

from pipeflow import Config, train
from pipeflow.errors import Preempted
from pipeflow.ray.stopping import heard


class LauncherEnvironment(TorchConfig):
    """Gives workers the environment that torchrun would, from which pipeflow makes the process groups itself."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _SetsEnvironment


class _SetsEnvironment(Backend):
    share_cuda_visible_devices = True  # as under torchrun, LOCAL_RANK picks one of the machine's GPUs
    attempt = 0

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Is called by Ray for every group of workers, those of a restart too."""
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_environment, address, port, self.attempt)
        self.attempt += 1


def _free_address() -> tuple[str, int]:
    """An address for rank 0 to listen at: its node's in the cluster, and a port that is free now."""
    with socket.create_server(("", 0)) as server:
        return ray.util.get_node_ip_address(), server.getsockname()[1]


def _set_environment(address: str, port: int, attempt: int) -> None:
    context = ray.train.get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "PIPEFLOW_LAUNCH_ID": context.get_experiment_name(),
    }


def work(settings: dict[str, Any]) -> Any:
    """Runs on every Ray Train worker; the summary, or Preempted, which Ray would show with a traceback of each worker.

    settings: `config`, as `Config.to_dict` gives it, and `wish`, the actor by which the driver asks to stop.
    """
    config = Config.from_dict(settings["config"])
    try:
        return train(config, report=Reporter(config.run.dir), stop=heard(settings["wish"]))
    except Preempted as notice:
        return notice


class Reporter:
    """Passes the reports of pipeflow on to Ray Train, whose `report` is a barrier for all workers.

    Ray keeps metrics in its `Result` only beside a checkpoint. pipeflow's checkpoints are in the run folder, so Ray's is a
    file that names it.
    """

    def __init__(self, run_dir: str):
        self.run_dir = run_dir
        tags = {"run": Path(run_dir).name}
        self._bits_per_dim = _of_run(Gauge("pipeflow_test_bits_per_dim", "of the whole flow", ("run",)), tags)
        self._rate = _of_run(Gauge("pipeflow_images_per_second", "in training", ("run",)), tags)
        self._sent = _of_run(
            Counter("pipeflow_link_bytes", "of latents in training, and of what goes back", ("run", "link")), tags
        )

    def __call__(self, event: dict[str, Any]) -> None:
        """Reports an event of `pipeflow.train`, which is empty on all workers but rank 0."""
        if not event:
            ray.train.report({})
            return
        metrics = metrics_of(event)
        if event["event"] == "epoch":
            self.show(metrics)
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"run_dir": self.run_dir, "epoch": metrics["epoch"]}
            Path(folder, "pipeflow.json").write_text(json.dumps(pointer))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def show(self, metrics: dict[str, Any]) -> None:
        """Shows an epoch on the dashboard's metrics page, through each node's Prometheus endpoint."""
        if metrics["test_bpd"] is not None:
            self._bits_per_dim.set(metrics["test_bpd"])
        self._rate.set(metrics["images_per_second"])
        for link, sent in metrics["link_bytes"].items():
            if sent:
                self._sent.inc(sent, {"link": link})


def _of_run(metric: Any, tags: dict[str, str]) -> Any:
    metric.set_default_tags(tags)
    return metric


def metrics_of(event: dict[str, Any]) -> dict[str, Any]:
    """The metrics that Ray gets for an epoch or, at the end, for the run: bits/dim, images/s, bytes by link and kind."""
    if event["event"] == "epoch":
        moved = [*event["bytes"]["latents"], *event["bytes"]["backward"]]
        told = {name: event[name] for name in ("epoch", "phase", "trained", "train_loss", "test_bpd", "exit_bpd")}
        rate = event["images"] / event["seconds"]
    else:
        moved = [(link, link + 1, sent) for link, sent in enumerate(event["bytes"]["forward"])]
        moved += [(link + 1, link, sent) for link, sent in enumerate(event["bytes"]["backward"]) if sent]
        told = {"epoch": event["num_epochs"], **{name: event[name] for name in ("test_bpd", "exit_bpd", "seconds")}}
        rate = sum(epoch["images"] for epoch in event["epochs"]) / sum(epoch["seconds"] for epoch in event["epochs"])
    links = {f"{source}->{target}": sent for source, target, sent in moved}
    others = {kind: sent for kind, sent in event["bytes"].items() if kind not in ("latents", "forward", "backward")}
    return {"event": event["event"], **told, "images_per_second": rate, "link_bytes": links, "bytes": others}
