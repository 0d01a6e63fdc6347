"""A run on the terminal: one heading and one line of results per step, and progress in between."""

from __future__ import annotations

import time
from typing import Any

from rich.text import Text

from raystill.cli.terminal import LOG, describe_counts, human_seconds
from raystill.pipeline import Step, StepResult
from raystill.run.events import seconds_left

PROGRESS_EVENT = "progress"
_LINE_EVERY_SECONDS = 30.0
_SILENT_EVENTS = frozenset({"stage_finished", "stage_failed", "models_compared"})
_MESSAGES = frozenset({"note", "warning"})
# Amounts that are only worth a word where there are any.
_RARE = frozenset({"rejected", "retries", "in_flight", "http_429", "http_5xx", "at_risk_usd"})
_FRAME_FIELDS = frozenset({"time", "stage", "event"})
_REFRESH_SECONDS = 0.2
_BAR_CELLS = 12


class TerminalObserver:
    """Shows a run on standard error: a live line on a terminal, a line per 30 seconds elsewhere."""

    def __init__(self) -> None:
        self._label = ""
        self._next_line = 0.0
        self._first: dict[str, Any] | None = None

    def step_started(self, name: Step, position: int, total: int) -> None:
        """Remember the heading; a step that is complete gets one line in all."""
        self.announce(f"[{position}/{total}] {name}")
        if LOG.is_terminal:
            LOG.print(Text(f"{self._label} ...", style="dim"), end="\r")

    def announce(self, label: str) -> None:
        """Take `label` as the heading of what comes."""
        self._label = label
        self._next_line = time.monotonic()
        self._first = None

    def event(self, record: dict[str, Any]) -> None:
        """Show what a stage says while it works."""
        if record["event"] == "stage_started":
            self._clear()
            LOG.print(Text(self._label, style="bold"))
        elif record["event"] == PROGRESS_EVENT:
            self._progress(record)
        elif record["event"] in _MESSAGES:
            self._clear()
            style = "yellow" if record["event"] == "warning" else "dim"
            LOG.print(Text(f"      {record['event']}: {record.get('message', '')}", style=style))
        elif record["event"] not in _SILENT_EVENTS:
            self._clear()
            LOG.print(Text(f"      {describe_event(record)}", style="dim"))

    def step_finished(self, result: StepResult) -> None:
        """One line: done or complete already, with the counts."""
        self._clear()
        counts = describe_counts(result.counts)
        if result.skipped:
            LOG.print(Text.assemble((self._label, "bold"), (": complete already", "green")))
        else:
            if result.name == "report":
                LOG.print(Text(self._label, style="bold"))
            LOG.print(Text.assemble("      ", ("done", "green"), f" in {human_seconds(result.seconds)}"))
            if counts:
                LOG.print(Text(f"      {counts}", style="dim"))

    def _progress(self, record: dict[str, Any]) -> None:
        self._first = self._first or record
        now = time.monotonic()
        if now < self._next_line and record.get("done") != record.get("total"):
            return
        self._next_line = now + (_REFRESH_SECONDS if LOG.is_terminal else _LINE_EVERY_SECONDS)
        words = describe_progress(record, seconds_left(self._first, record))
        if LOG.is_terminal:
            self._clear()
            line = Text.assemble("      ", draw_bar(record), (words, "cyan"))
            line.truncate(LOG.width - 1)
            LOG.print(line, end="\r")
        else:
            LOG.print(f"      {words}")

    def _clear(self) -> None:
        if LOG.is_terminal:
            LOG.print(" " * (LOG.width - 1), end="\r")


def describe_event(record: dict[str, Any]) -> str:
    """`model started: model sft, position 1` from any event."""
    fields = [
        f"{name.replace('_', ' ')} {value:,}"
        if isinstance(value, int)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in record.items()
        if name not in _FRAME_FIELDS and value not in (None, "", [], {})
    ]
    name = str(record["event"]).replace("_", " ")
    return f"{name}: {', '.join(fields)}" if fields else name


def draw_bar(record: dict[str, Any]) -> Text:
    """A bar of how much is done, and a space; nothing where the total isn't known."""
    done, total = record.get("done"), record.get("total")
    if done is None or not total:
        return Text()
    full = round(_BAR_CELLS * min(done / total, 1.0))
    return Text.assemble(("━" * full, "green"), ("─" * (_BAR_CELLS - full), "dim"), " ")


def describe_progress(record: dict[str, Any], left: float | None) -> str:
    """`120/400 rows, tokens/s 812, 1 min 3 s left` from a progress event's fields.

    `done` and `total` count `unit`s; every other number is shown with its name, amounts of USD as such, and
    what rarely happens only where it did. `left` is in seconds.
    """
    done, total = record.get("done"), record.get("total")
    parts = []
    if done is not None:
        parts.append(f"{done:,}{'' if total is None else f'/{total:,}'} {record.get('unit', 'rows')}")
    known = _FRAME_FIELDS | {"done", "total", "unit", "eta_seconds"}
    for name, value in record.items():
        if name in known or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value or name not in _RARE:
            parts.append(_describe_amount(name, value))
    if left:
        parts.append(f"{human_seconds(left)} left")
    return ", ".join(parts)


def _describe_amount(name: str, value: float) -> str:
    if name.endswith("_usd"):
        return f"{name.removesuffix('_usd').replace('_', ' ')} ${value:,.4f}"
    shown = f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.4g}"
    return f"{name.replace('_per_s', '/s').replace('_', ' ')} {shown}"
