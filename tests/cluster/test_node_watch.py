"""A stage that waits for nodes says so, once for every time."""

from __future__ import annotations

import queue

import pytest

from raystill.cluster import node_watch
from raystill.cluster.node_watch import NodeWatch
from raystill.errors import Problem


def test_what_lacks_is_told_when_it_begins_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_watch, "_POLL_SECONDS", 0.001)
    lacking = Problem("generate asks for 1 engine, each 1 CPU: 1 CPU, and Ray has 0 CPU")
    seen: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()
    states = iter([lacking, lacking, None, None, lacking, *[None] * 3])
    watch = NodeWatch(lambda: next(states, None), lambda event, **fields: seen.put((event, fields)))
    told = [seen.get(timeout=60) for _ in range(4)]
    watch.stop()
    waits = ("waiting_for_nodes", {"because": lacking.what})
    assert told == [waits, ("nodes_came", {}), waits, ("nodes_came", {})]
    assert seen.empty()


def test_a_cluster_that_is_gone_ends_the_watch() -> None:
    def look() -> Problem | None:
        raise ConnectionError("Ray has not been started yet")

    seen: list[str] = []
    watch = NodeWatch(look, lambda event, **fields: seen.append(event))
    watch.stop()
    assert seen == [] and not watch._thread.is_alive()
