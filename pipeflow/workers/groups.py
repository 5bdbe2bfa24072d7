"""The end of torch's process groups, which may not come by itself."""

import threading

import torch.distributed as dist

_LEAVE_SECONDS = 5.0
"""Process groups whose workers are lost get so long to end."""


def destroy_groups() -> None:
    """Forgets all process groups, so that this process can join others. NCCL may wait for a worker that is lost."""
    destroying = threading.Thread(target=dist.destroy_process_group, name="pipeflow-leave", daemon=True)
    destroying.start()
    destroying.join(_LEAVE_SECONDS)
