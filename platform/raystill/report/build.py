"""`report.html`: one self-contained file, published atomically, from whatever stages are complete."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from raystill.config.schema import Config
from raystill.report.facts import ReportFacts, load_facts
from raystill.report.markup import Child, Html, join, tag
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


def render_document(title: str, body: Sequence[Child]) -> str:
    """A page. Its policy allows its own style sheet and nothing else: no script, image or request."""
    style = (resources.files("raystill.report") / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head: list[Child] = [
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("meta", {"name": "referrer", "content": "no-referrer"}),
        tag("title", {}, title),
        tag("style", {}, Html(style)),
    ]
    page = tag("html", {"lang": "en"}, tag("head", {}, *head), tag("body", {}, tag("main", {}, join(body))))
    return f"<!DOCTYPE html>\n{page}\n"
