"""What the stage curate left out, and the shares of the sources that came out."""

from __future__ import annotations

from typing import Any

from raystill.evaluate.gap_table import format_percent
from raystill.report.charts import bar_rows
from raystill.report.facts import ReportFacts
from raystill.report.layout import format_integer, section, table, tiles
from raystill.report.markup import Html, tag

CODE_TEXTS = {
    "empty": "empty",
    "finish_reason": "ended another way",
    "too_short": "too short",
    "too_long": "too long",
    "refusal": "refusal",
    "tool_call": "call that no tool takes",
    "personal_data": "personal data",
    "contaminated": "holds a held-out text",
    "judge_score": "judge's score too low",
    "not_judged": "without a judge's score",
    "exact_duplicate": "duplicate",
    "near_duplicate": "near duplicate",
    "not_best": "not the best sample",
    "mixture": "left out by the mixture",
}


def render_curation(facts: ReportFacts) -> Html | None:
    """Rows in, kept and dropped by reason; sources with their shares; personal data."""
    report = facts.curation
    if report is None:
        return None
    return section(
        "Curation",
        "Which of the teacher's completions were trained on. Kept and dropped add up to what came in; the "
        "reason of every dropped row is in curate/rejects.parquet. Held-out rows are never dropped.",
        tiles(_tiles(report)),
        _drops(report),
        _sources(report["sources"]),
    )


def _tiles(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    personal, held_out = report["personal_data"], report["held_out"]["rows"]
    found = sum(personal["in_completions"].values())
    entries = [
        (
            format_integer(report["rows_in"]),
            "completions in",
            f"{held_out:,} of them held out",
        ),
        (format_integer(report["kept"]), "kept", format_percent(report["kept"] / max(1, report["rows_in"]))),
        (format_integer(report["dropped"]), "dropped", "with a reason each"),
    ]
    if personal["mode"] != "ignore":
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in personal["in_completions"].items()) or "none"
        entries.append((format_integer(found), f"personal data, {personal['mode']}", kinds))
    return entries


def _drops(report: dict[str, Any]) -> Html | None:
    counts = report["dropped_by_code"]
    if not counts:
        return None
    total = report["rows_in"]
    bars = [
        (CODE_TEXTS.get(code, code), float(count), f"{count:,} ({format_percent(count / total)} of all)")
        for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    title = "Dropped, by reason"
    return tag("figure", {"class": "wide"}, tag("figcaption", {}, tag("strong", {}, title)),
               bar_rows(bars, title=title))  # fmt: skip


def _sources(sources: list[dict[str, Any]]) -> Html:
    is_mixed = any("wanted_share" in source for source in sources)
    headers = ["Source", "rows in", "kept", "share of kept", *(["asked for"] if is_mixed else [])]
    rows = [
        [
            source["source"],
            f"{source['rows_in']:,}",
            f"{source['kept']:,}",
            format_percent(source["share"]),
            *([format_percent(source["wanted_share"])] if is_mixed else []),
        ]
        for source in sources
    ]
    return table(headers, rows, caption="Training rows by source")
