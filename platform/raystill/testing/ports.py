"""Ports for servers that must be told theirs before they start, and are slow to take it."""

from __future__ import annotations

import itertools
import os
import socket

from raystill.errors import EnvironmentFault

# Above what Ray gives to its workers (10002 to 19999) and below what systems hand out by themselves (Linux:
# from 32768 on): nobody's outgoing connection takes such a port before its server does.
_LOW, _HIGH = 20_000, 32_000
# Processes beside each other begin far apart, whatever the distance of their ids.
_STRIDE = 97
_numbers = itertools.count()


def find_port() -> int:
    """A free port of loopback, another one for every call. Raises EnvironmentFault where there is none."""
    first = os.getpid() * _STRIDE
    for number in itertools.islice(_numbers, _HIGH - _LOW):
        port = _LOW + (first + number) % (_HIGH - _LOW)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise EnvironmentFault("no port of this machine is free", where=f"{_LOW} to {_HIGH}", fix="end servers")
