"""The sweeps over a run's answers, on the run's own page: the same pictures as on theirs."""

from __future__ import annotations

from raystill.report.facts import ReportFacts
from raystill.report.layout import section, tiles
from raystill.report.markup import Html, join
from raystill.report.sweep_page import render_sweep


def render_sweeps(facts: ReportFacts) -> Html | None:
    """Every sweep: its tiles, its trials, and what mattered."""
    if not facts.sweeps:
        return None
    parts: list[Html] = []
    for sweep in facts.sweeps:
        parts.append(
            section(f"Sweep: {sweep.name}", "Many short trainings from the same answers.", tiles(sweep.facts))
        )
        parts += render_sweep(sweep)
    return join(parts)
