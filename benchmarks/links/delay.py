"""The relay that makes a link long: it holds every packet for so many milliseconds before it goes on.

    host 0 ==veth, limited== bridge0 -- tap0 \\
    host 1 ==veth, limited== bridge1 -- tap1  |- this process: waits d ms, hands each packet to its host's tap
    host 2 ==veth, limited== bridge2 -- tap2 /

For kernels without netem. The taps pass what TCP hands over at once (up to 64 kB of packets; `IFF_VNET_HDR` and offloads)
in one piece, so that it costs two system calls and little time of a core that the workers need.

What it models: a constant delay of each direction, on top of the rate, which the token buckets at both ends set. What it
does not: jitter, loss, reordering, and a limit to what is on its way. It uses the standard library alone, so that it starts
at once. Started by hosts.py, inside the namespace of the bridges.
"""

import argparse
import fcntl
import os
import select
import struct
import time
from collections import deque

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02  # TUN_F_CSUM | TUN_F_TSO4
_VNET_HEADER = 10
_LARGEST = _VNET_HEADER + 14 + (1 << 16)
_READS_IN_A_ROW = 64


def open_tap(name: str) -> int:
    """The other end of a tap that exists, as a file descriptor that does not block."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _OFFLOADS)
    return tap


def relay(tap_of: dict[bytes, int], delay: float) -> None:
    """Moves packets between taps for ever, each `delay` seconds after it came. tap_of: by the host's MAC address."""
    held: deque[tuple[float, int, bytes]] = deque()  # in order of time, since the delay is the same for all
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select(list(tap_of.values()), [], [], wait)
        for tap in readable:
            for _ in range(_READS_IN_A_ROW):
                try:
                    packet = os.read(tap, _LARGEST)
                except BlockingIOError:
                    break
                target = tap_of.get(packet[_VNET_HEADER : _VNET_HEADER + 6])
                if target is not None:  # there is no ARP: hosts know each other's addresses
                    held.append((time.monotonic() + delay, target, packet))
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, target, packet = held.popleft()
            os.write(target, packet)


def main() -> None:
    """Opens the taps, says that it is ready, and relays until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ms", type=float, required=True, help="milliseconds one way")
    parser.add_argument("--ready-fd", type=int, required=True, help="a byte is written there once packets are relayed")
    parser.add_argument("taps", nargs="+", metavar="TAP=MAC", help="a tap, and the MAC address of the host behind it")
    arguments = parser.parse_args()
    ends = [end.split("=") for end in arguments.taps]
    tap_of = {bytes.fromhex(mac.replace(":", "")): open_tap(tap) for tap, mac in ends}
    os.write(arguments.ready_fd, b".")
    os.close(arguments.ready_fd)
    relay(tap_of, arguments.ms / 1000)


if __name__ == "__main__":
    main()
