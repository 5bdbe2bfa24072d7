"""The network interface that workers listen on: only the loopback where all of them are on one machine.

Neither gloo nor NCCL asks who connects, so nobody outside should be able to. By default both listen on the interface that
the machine's name stands for.
"""

import os
import socket

LIBRARIES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Each library's own environment variable for the interface."""

_LOOPBACKS = ("lo", "lo0")
"""Names on Linux and on macOS."""


def stay_on_this_machine() -> None:
    """Names the loopback to gloo and NCCL where the launcher put all workers on this machine.

    To be called before groups are made, which is when they open their sockets.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        use_loopback()


def use_loopback() -> None:
    """Names the loopback to gloo and NCCL, unless the user has named an interface."""
    loopback = next((name for _, name in socket.if_nameindex() if name in _LOOPBACKS), None)
    if loopback is not None:
        for library in LIBRARIES:
            os.environ.setdefault(library, loopback)
