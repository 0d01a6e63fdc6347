"""Ports that are nobody's when they are handed out, and never handed out twice."""

from __future__ import annotations

import socket

from raystill.testing.ports import find_port


def test_ports_are_free_distinct_and_never_of_an_outgoing_connection() -> None:
    ports = [find_port() for _ in range(20)]
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 32_000 for port in ports)
    with socket.socket() as server:
        server.bind(("127.0.0.1", ports[0]))


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as server:
        before = find_port()
        server.bind(("127.0.0.1", before + 1 if before < 31_999 else 20_000))
        assert find_port() != server.getsockname()[1]
