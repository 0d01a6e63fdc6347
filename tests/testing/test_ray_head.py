"""A head of one's own, and one whose nodes come and go: what they are told, without starting any."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.testing.growing_cluster import _scaling
from raystill.testing.ray_head import RayHead, joining_environment


def test_who_joins_has_the_token_and_no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    head = RayHead("127.0.0.1:1", "", Path("/nowhere"), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "own"})
    environment = joining_environment(head, NO_COLOR="1")
    assert "RAY_ADDRESS" not in environment and environment["RAY_AUTH_TOKEN"] == "own"
    assert environment["NO_COLOR"] == "1" and "own" not in repr(head)


def test_the_head_has_nothing_to_offer_and_nodes_leave_when_idle() -> None:
    scaling = _scaling({"CPU": 1}, 2, {"market-type": "spot"}, "127.0.0.1:1")
    kinds = scaling["available_node_types"]
    assert kinds[scaling["head_node_type"]]["resources"] == {"CPU": 0}
    assert (kinds["worker"]["min_workers"], kinds["worker"]["max_workers"]) == (0, 2)
    assert kinds["worker"]["labels"] == {"market-type": "spot"}
    assert scaling["idle_timeout_minutes"] == pytest.approx(0.1)
