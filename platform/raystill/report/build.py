"""`report.html`: one self-contained file, published atomically, from whatever stages are complete."""

from __future__ import annotations

from pathlib import Path

from raystill.config.schema import Config
from raystill.report.document import render_document
from raystill.report.facts import ReportFacts, load_facts
from raystill.report.sections import SECTIONS, render_header
from raystill.run.paths import RunPaths
from raystill.run.publish import publish_file


def build_report(paths: RunPaths, config: Config) -> Path:
    """Write the report of a run and return its path. Raises DataError for an unreadable manifest."""
    page = render_page(load_facts(paths, config))
    with publish_file(paths.report) as temporary:
        temporary.write_bytes(page.encode("utf-8"))
    return paths.report


def render_page(facts: ReportFacts) -> str:
    """The whole page of a run."""
    sections = (section for build in SECTIONS if (section := build(facts)))
    return render_document(f"{facts.config.run.name}: distillation report", [render_header(facts), *sections])
