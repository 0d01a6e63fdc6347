"""The data benchmark: rows that are text, sides that count the same tokens, goals that are judged."""

from __future__ import annotations

from pathlib import Path

from raystill.bench.data import Sizes, make_rows, measure


def test_both_sides_are_measured_on_the_same_chats(tmp_path: Path) -> None:
    rate, cached = measure(Sizes(60, 1), tmp_path)
    assert rate.peer is not None and rate.ours > 0 and rate.ratio == rate.ours / rate.peer
    assert cached.met == (cached.ours < 2.0) and cached.ours < 2.0
    assert len({row.key for row in make_rows(60)}) == 60
