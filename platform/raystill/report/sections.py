"""The order of the page."""

from __future__ import annotations

from collections.abc import Callable

from raystill.report.curate_section import render_curation
from raystill.report.data_sections import render_data, render_signals
from raystill.report.facts import ReportFacts
from raystill.report.markup import Html
from raystill.report.result_sections import render_gap, render_header, render_samples
from raystill.report.run_sections import render_export, render_reproduction, render_time
from raystill.report.sweep_section import render_sweeps
from raystill.report.training_section import render_training

__all__ = ["SECTIONS", "render_header"]

SECTIONS: tuple[Callable[[ReportFacts], Html | None], ...] = (
    render_gap,
    render_samples,
    render_training,
    render_sweeps,
    render_data,
    render_curation,
    render_signals,
    render_time,
    render_export,
    render_reproduction,
)
