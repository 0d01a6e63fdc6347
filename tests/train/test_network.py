"""Workers meet on the network by which Ray reaches their nodes."""

from __future__ import annotations

import os

import psutil
import pytest
import ray

from raystill.train.network import GLOO_INTERFACE, find_interface, meet_where_ray_does


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray says on a cluster of two nodes, of which this one is known by loopback."""
    monkeypatch.setenv(GLOO_INTERFACE, "")
    monkeypatch.delenv(GLOO_INTERFACE)
    monkeypatch.setattr(ray, "nodes", lambda: [{}, {}])
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")


def loopback() -> str:
    return next(
        name for name, found in psutil.net_if_addrs().items() if "127.0.0.1" in [one.address for one in found]
    )


def test_an_address_has_an_interface_and_a_foreign_one_has_none() -> None:
    assert find_interface("127.0.0.1") == loopback()
    assert find_interface("203.0.113.77") is None


@pytest.mark.usefixtures("two_nodes")
def test_gloo_gets_the_interface_of_the_address_that_ray_uses() -> None:
    meet_where_ray_does()
    assert os.environ[GLOO_INTERFACE] == loopback()


@pytest.mark.usefixtures("two_nodes")
def test_who_chose_one_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO_INTERFACE, "eth7")
    meet_where_ray_does()
    assert os.environ[GLOO_INTERFACE] == "eth7"


@pytest.mark.usefixtures("two_nodes")
def test_an_address_that_no_interface_has_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.77")
    meet_where_ray_does()
    assert GLOO_INTERFACE not in os.environ


@pytest.mark.usefixtures("two_nodes")
def test_on_one_node_torch_does_as_it_always_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{}])
    meet_where_ray_does()
    assert GLOO_INTERFACE not in os.environ
