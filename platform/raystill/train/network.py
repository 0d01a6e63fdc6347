"""Which of a node's networks the workers of a group meet on: the one by which Ray reaches the node.

On CPUs torch's gloo asks what the host's name means and listens there. On many machines and in most
containers that is loopback, or a network that the other nodes don't see: the group then waits for a
connection that can't come. Ray knows an address of every node that all others reach, and its interface has a
name.
"""

from __future__ import annotations

import os

import psutil

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def find_interface(address: str) -> str | None:
    """The name of this machine's interface that has `address` (IPv4 or IPv6); None where none has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return str(name)
    return None


def meet_where_ray_does() -> None:
    """Let gloo use the interface with Ray's address, where there are several nodes and nobody chose another.

    For a worker's process, before its process group begins. Ray must be running.
    """
    import ray

    if GLOO_INTERFACE in os.environ or len(ray.nodes()) < 2:
        return
    name = find_interface(ray.util.get_node_ip_address())
    if name is not None:
        os.environ[GLOO_INTERFACE] = name
