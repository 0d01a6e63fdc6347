"""An HTML page that stands alone: its own style sheet, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from raystill.report.markup import Child, Html, join, tag


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
