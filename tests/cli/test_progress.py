"""What a run says while it works."""

from __future__ import annotations

import pytest

from raystill.cli.progress import TerminalObserver, describe_event, describe_progress, draw_bar
from raystill.pipeline import StepResult

FRAME = {"time": 0.0, "stage": "generate"}


def test_progress_has_rows_rates_and_the_time_left() -> None:
    record = FRAME | {"event": "progress", "done": 1200, "total": 4800, "tokens_per_s": 1234.5}
    assert describe_progress(record, left=180.0) == "1,200/4,800 rows, tokens/s 1,234, 3 min 0 s left"
    record |= {"eta_seconds": 5.0, "unit": "steps", "loss": 0.12345}
    assert describe_progress(record, None) == "1,200/4,800 steps, tokens/s 1,234, loss 0.1235"


def test_money_is_money_and_what_rarely_happens_is_said_where_it_did() -> None:
    record = FRAME | {"event": "progress", "done": 5, "total": 5, "rejected": 0, "retries": 0}
    record |= {"requests": 5, "cost_usd": 0.000056, "at_risk_usd": 0}
    assert describe_progress(record, None) == "5/5 rows, requests 5, cost $0.0001"
    record |= {"rejected": 2, "at_risk_usd": 1.5}
    assert (
        describe_progress(record, None) == "5/5 rows, rejected 2, requests 5, cost $0.0001, at risk $1.5000"
    )


def test_a_note_is_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    for event in ("note", "warning"):
        TerminalObserver().event(FRAME | {"event": event, "message": "no seed"})
    assert capsys.readouterr().err.split("\n")[:2] == ["      note: no seed", "      warning: no seed"]


def test_the_bar_fills_with_what_is_done() -> None:
    bars = [draw_bar({"done": done, "total": 8}).plain for done in (0, 3, 8, 9)]
    assert [bar.count("━") for bar in bars] == [0, 4, 12, 12]
    assert {len(bar) for bar in bars} == {13}
    assert draw_bar({"done": 3}).plain == ""


def test_any_event_reads_as_a_line() -> None:
    record = FRAME | {"event": "model_started", "model": "sft", "position": 1, "note": ""}
    assert describe_event(record) == "model started: model sft, position 1"


def test_a_run_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    observer = TerminalObserver()
    observer.step_started("prepare", 1, 2)
    observer.step_finished(StepResult("prepare", skipped=True, seconds=3.0))
    observer.step_started("generate", 2, 2)
    observer.event(FRAME | {"event": "stage_started"})
    for done in (1, 2, 3):
        observer.event(FRAME | {"event": "progress", "done": done, "total": 3})
    observer.step_finished(StepResult("generate", skipped=False, seconds=3.0, counts={"rows": 1200}))
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line.rstrip() for line in shown.err.splitlines()]
    assert lines == [
        "[1/2] prepare: complete already",
        "[2/2] generate",
        "      1/3 rows",
        "      3/3 rows",
        "      done in 3.0 s",
        "      1,200 rows",
    ]


def test_the_time_left_does_not_count_the_start_up(capsys: pytest.CaptureFixture[str]) -> None:
    observer = TerminalObserver()
    observer.step_started("distill", 1, 1)
    observer.event(FRAME | {"event": "stage_started"})
    # It started at 0 s, its first ten steps were done at 60 s, and from then on they take a second each.
    for now, done in ((60.0, 10), (70.0, 20)):
        observer._next_line = 0.0
        record = {"event": "progress", "time": now, "done": done, "total": 140, "unit": "steps"}
        observer.event(FRAME | record)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[1:] == ["10/140 steps", "20/140 steps, 2 min 0 s left"]


def test_every_step_has_its_own_pace(capsys: pytest.CaptureFixture[str]) -> None:
    observer = TerminalObserver()
    for start in (0.0, 1000.0):
        observer.step_started("sft", 1, 1)
        observer.event(FRAME | {"event": "stage_started"})
        for done in (1, 2):
            observer._next_line = 0.0
            observer.event(
                FRAME | {"event": "progress", "time": start + 10.0 * done, "done": done, "total": 4}
            )
    assert capsys.readouterr().err.count("2/4 rows, 20.0 s left") == 2
