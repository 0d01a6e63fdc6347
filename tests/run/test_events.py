"""The run log: one JSON object per line, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raystill.run.events import EventLog, seconds_left


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_events_are_appended_and_readable_at_once(tmp_path: Path) -> None:
    path, seen = tmp_path / "logs" / "run.jsonl", []
    with EventLog(path, "prepare", seen.append) as events:
        events.emit("rows", done=3, text="ü\n")
        assert json.loads(lines(path)[0]) == seen[0]
    with EventLog(path, "generate") as events:
        events.emit("rows", done=4)
    found = [json.loads(line) for line in lines(path)]
    assert [(event["stage"], event["event"], event["done"]) for event in found] == [
        ("prepare", "rows", 3),
        ("generate", "rows", 4),
    ]
    assert seen == found[:1]


def test_a_failure_is_an_event(tmp_path: Path) -> None:
    with pytest.raises(KeyError), EventLog(tmp_path / "x", "prepare"):
        raise KeyError("secret")
    event = json.loads(lines(tmp_path / "x")[0])
    assert (event["event"], event["error"]) == ("stage_failed", "KeyError")
    assert "secret" not in (tmp_path / "x").read_text(encoding="utf-8")


def test_half_a_line_of_a_killed_run_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"event": "whole"}\n{"event": "ha', encoding="utf-8")
    with EventLog(path, "prepare") as events:
        events.emit("next")
    found = lines(path)
    assert len(found) == 3
    assert json.loads(found[0])["event"] == "whole"
    assert json.loads(found[2])["event"] == "next"


@pytest.mark.parametrize(
    ("first", "latest", "left"),
    [
        ((60.0, 10, 140), (60.0, 10, 140), None),  # one event has no pace
        ((60.0, 10, 140), (70.0, 20, 140), 120.0),
        ((5.0, 400, 500), (15.0, 450, 500), 10.0),  # what an earlier process did is no pace of this one
        ((5.0, 0, 10), (8.0, 10, 10), None),
        ((5.0, 0, None), (8.0, 10, None), None),
        ((9.0, 1, 10), (8.0, 2, 10), None),  # the clock was set back
    ],
)
def test_the_time_left_is_counted_from_the_first_progress(
    first: tuple[float, int, int | None], latest: tuple[float, int, int | None], left: float | None
) -> None:
    events = [dict(zip(("time", "done", "total"), event, strict=True)) for event in (first, latest)]
    assert seconds_left(*events) == left
    assert seconds_left(events[0], events[1] | {"eta_seconds": 7.5}) == 7.5
