"""Worker 1 says that it has begun a control message that never comes, as over a connection that is dead both ways."""

import torch.distributed as dist

from pipeflow.errors import WorkerError
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.control import Control
from pipeflow.workers.traffic import Traffic


def main(arguments: list[str]) -> int:
    """Worker 0 prints what it finds, and releases worker 1."""
    dist.init_process_group("gloo")
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 1:
        store.get("seen")
        return 0
    control = Control(2, dist.group.WORLD, Traffic(), Alarm(), timeout=0.5)
    control.begun_by = lambda other: control.begun[other]
    try:
        control.receive_json(1, "the losses")
    except WorkerError as error:
        print(error, flush=True)
    store.set("seen", "")
    return 0
