"""Three workers that watch each other; worker 1 ends without a word, the others print who is lost."""

import os
import queue
import threading

import torch.distributed as dist

from pipeflow.workers.neighbour import Neighbour


def main(arguments: list[str]) -> int:
    """arguments: `lost`, or `end` where all end as they should."""
    dist.init_process_group("gloo")
    lost: queue.SimpleQueue[int] = queue.SimpleQueue()
    neighbour = Neighbour(dist.get_rank(), dist.get_world_size(), dist.new_group(), lost.put)
    dist.barrier()
    if arguments == ["lost"]:
        if dist.get_rank() == 1:
            os._exit(0)
        if dist.get_rank() == 0:
            print(f"worker 0 lost worker {lost.get(timeout=60)}", flush=True)
        return 0
    neighbour.say_end()
    for thread in threading.enumerate():
        if thread.name == "pipeflow-neighbour":
            thread.join(20)
            print("somebody still listens" if thread.is_alive() else "", flush=True)
    dist.barrier()
    print("nobody was lost" if lost.empty() else "somebody was lost", flush=True)
    return 0
