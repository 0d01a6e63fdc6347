"""The row that kills an engine is found in few restarts; what no row explains is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.errors import EnvironmentFault
from raystill.teacher.death_notes import Blame, DeathNotes, note_death

RESTARTS = 2


def simulate(rows: list[str], poison: set[str], limit: int) -> tuple[Blame, int, set[str]]:
    """Engines that die once a poison row is in flight, under the gate's rules; blame, deaths, rows done."""
    blame, deaths, done = Blame(), 0, set()
    while True:
        left = [row for row in rows if row not in done and row not in blame.convicted]
        if not left:
            return blame, deaths, done
        suspects = [row for row in left if row in blame.suspects]
        flight = suspects[: blame.group] if suspects else left[:limit]
        if poison & set(flight):
            deaths += 1
            note_death(blame, flight, set(), RESTARTS)
        else:
            done |= set(flight)
            note_finished(blame, set(flight))
        assert deaths < 60


def note_finished(blame: Blame, finished: set[str]) -> None:
    blame.suspects = [row for row in blame.suspects if row not in finished]
    for row in finished:
        blame.deaths.pop(row, None)
    blame.barren = blame.barren_convictions = 0
    blame.group = blame.group if blame.suspects else 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_exactly_the_poison_is_convicted(num_rows: int, limit: int, data: st.DataObject) -> None:
    """F39."""
    rows = [f"r{index}" for index in range(num_rows)]
    poison = set(data.draw(st.lists(st.sampled_from(rows), max_size=3)))
    blame, deaths, done = simulate(rows, poison, limit)
    assert set(blame.convicted) == poison
    assert done == set(rows) - poison
    assert deaths <= 10 * len(poison)


def test_one_of_many_is_found_within_seven_deaths() -> None:
    rows = [f"r{index}" for index in range(282)]
    blame, deaths, _ = simulate(rows, {"r200"}, 282)
    assert deaths <= 7
    assert blame.convicted == {"r200": deaths}


def test_notes_survive_the_process(tmp_path: Path) -> None:
    first = DeathNotes(tmp_path, "actor", RESTARTS)
    assert not first.is_successor
    for key in ("a", "b", "c"):
        first.started(key)
    first.finished("b")
    second = DeathNotes(tmp_path, "actor", RESTARTS)  # nothing was closed: the process was killed
    assert second.is_successor
    assert second.blame.deaths == {"a": 1, "c": 1}
    assert second.blame.suspects == []
    second.started("a")
    second.started("c")
    third = DeathNotes(tmp_path, "actor", RESTARTS)
    assert third.blame.suspects == ["a", "c"]
    assert third.blame.group == 1
    third.started("a")
    fourth = DeathNotes(tmp_path, "actor", RESTARTS)
    assert fourth.blame.convicted == {"a": 3}
    assert not DeathNotes(tmp_path, "another", RESTARTS).is_successor


def test_long_notes_are_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystill.teacher.death_notes._COMPACT_LINES", 10)
    notes = DeathNotes(tmp_path, "actor", RESTARTS)
    notes.started("stays")
    for index in range(100):
        notes.started(f"r{index}")
        notes.finished(f"r{index}")
    assert (tmp_path / "actor.rows").stat().st_size < 200
    assert DeathNotes(tmp_path, "actor", RESTARTS).blame.deaths == {"stays": 1}


@pytest.mark.parametrize("in_flight", [[], ["a", "b", "c", "d", "e"]])
def test_an_engine_that_never_finishes_a_row_is_given_up(tmp_path: Path, in_flight: list[str]) -> None:
    """F39."""
    for _ in range(30):
        notes = DeathNotes(tmp_path, "actor", RESTARTS)
        try:
            notes.require_hope("fake")
        except EnvironmentFault as error:
            assert "died again and again" in str(error)
            return
        suspects = [key for key in in_flight if key in notes.blame.suspects]
        left = [key for key in in_flight if key not in notes.blame.convicted]
        for key in suspects[: notes.blame.group] or left:
            notes.started(key)
    raise AssertionError("never given up")


def test_suspects_that_all_finish_again_and_again_are_no_explanation(tmp_path: Path) -> None:
    notes = DeathNotes(tmp_path, "actor", RESTARTS)
    for _ in range(RESTARTS + 1):
        notes.require_hope("fake")
        notes.clear_suspects()
    with pytest.raises(EnvironmentFault, match="never with few"):
        notes.require_hope("fake")
