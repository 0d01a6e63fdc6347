"""Blocks that every section is made of: sections, tables, tiles, and numbers as words."""

from __future__ import annotations

from collections.abc import Sequence

from raystill.report.markup import Child, Html, join, tag
from raystill.run.paths import StageName

STAGE_LABELS: dict[StageName, str] = {
    "prepare": "Prepare prompts",
    "generate": "Generate with the teacher",
    "score": "Score with the teacher",
    "grade": "Let a judge score the answers",
    "curate": "Choose what to train on",
    "sft": "Supervised fine-tuning",
    "distill": "Distillation",
    "evaluate": "Evaluate",
    "export": "Export and verify",
}
ROLE_CSS = {"teacher": "teacher", "untrained": "untrained", "sft": "sft", "distill": "distill"}


def section(title: str, lead: str, *children: Child) -> Html:
    """A titled section with a sentence on how to read it."""
    return tag(
        "section", {}, tag("h2", {}, title), tag("p", {"class": "lead"}, lead) if lead else None, *children
    )


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Child]], *, caption: str, numeric_from: int = 1
) -> Html:
    """A table whose columns from `numeric_from` on are numbers; it scrolls by itself on narrow screens."""
    head = [
        tag("th", {"scope": "col", "class": "num" if index >= numeric_from else None}, header)
        for index, header in enumerate(headers)
    ]
    body = [
        tag(
            "tr",
            {},
            tag("th", {"scope": "row"}, row[0]),
            *(
                tag("td", {"class": "num" if index >= numeric_from else None}, cell)
                for index, cell in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    built = tag(
        "table",
        {},
        tag("caption", {}, caption),
        tag("thead", {}, tag("tr", {}, *head)),
        tag("tbody", {}, *body),
    )
    return tag(
        "div", {"class": "table-scroll", "tabindex": 0, "role": "region", "aria-label": caption}, built
    )


def tiles(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Facts as tiles from (value, what it is, detail)."""
    return tag(
        "dl",
        {"class": "tiles"},
        *(
            tag("div", {}, tag("dt", {}, label), tag("dd", {}, value), tag("dd", {"class": "detail"}, detail))
            for value, label, detail in entries
        ),
    )


def role_label(key: str, label: str) -> Html:
    """A model's name with its colour."""
    css = ROLE_CSS.get(key, "ink")
    return join([tag("span", {"class": f"key {css}", "aria-hidden": "true"}), label])


def format_duration(seconds: float) -> str:
    """`2 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_integer(value: int | None) -> str:
    """Thousands apart; a dash for nothing."""
    return "–" if value is None else f"{value:,}"
