"""What the student was taught with: prompts, the teacher's completions, and its distributions."""

from __future__ import annotations

from collections.abc import Mapping

from raystill.evaluate.gap_table import format_percent
from raystill.report.charts import bar_rows, histogram, stack
from raystill.report.facts import ReportFacts, StoreFacts
from raystill.report.layout import format_integer, section, tiles
from raystill.report.markup import Html, tag


def render_data(facts: ReportFacts) -> Html | None:
    """Rows, splits, duplicates, rejects with reasons, finish reasons and lengths."""
    if "prepare" not in facts.manifests and facts.store is None:
        return None
    panels = []
    rejects = dict(facts.prompt_rejects)
    if facts.store is not None:
        stats = facts.store.stats
        panels.append(_bars("How completions ended", stats.finish_reasons))
        for code, count in stats.rejects_by_code.items():
            rejects[code] = rejects.get(code, 0) + count
    panels.append(_bars("Left out, by reason", rejects) if rejects else None)
    charts = []
    if facts.store is not None and facts.store.prompt_tokens:
        charts = [
            histogram(facts.store.prompt_tokens, title="Prompt length", unit="tokens", css="untrained"),
            histogram(facts.store.completion_tokens, title="Completion length", unit="tokens", css="teacher"),
        ]
    return section(
        "Data",
        "Every row that came in is accounted for: kept, a duplicate, dropped for its length, or rejected "
        "with a reason.",
        tiles(_data_tiles(facts)),
        stack(charts, "panels"),
        stack(panels, "panels"),
    )


def render_signals(facts: ReportFacts) -> Html | None:
    """How much of the teacher's probability the stored top k holds."""
    store = facts.store
    if store is None or not store.captured_mass:
        return None
    stats = store.stats
    widths = ", ".join(sorted(stats.logprob_widths, key=int))
    entries = [
        (widths or "–", "logprobs per token", "stored for every completion token"),
        (
            format_percent(stats.captured_mass_mean),
            "captured mass",
            "mean probability inside the stored logprobs",
        ),
        (
            f"{stats.bytes_per_token:.0f} B",
            "per completion token",
            f"{stats.size_bytes / 1e6:,.1f} MB on disk",
        ),
        (format_integer(stats.num_scored), "rows with signal", f"of {stats.num_rows:,}"),
    ]
    return section(
        "Teacher signals",
        "The student learns from the teacher's whole distribution: its most likely tokens one by one, "
        "everything else as one more outcome.",
        tiles(entries),
        stack([_tail_chart(store)], "charts"),
    )


def _tail_chart(store: StoreFacts) -> Html:
    """Shares of tokens by how much mass lies outside: the mass itself is all but 1 nearly everywhere."""
    edges = [
        (0.5, "below 50 %"),
        (0.9, "50 to 90 %"),
        (0.99, "90 to 99 %"),
        (0.999, "99 to 99.9 %"),
        (2.0, "above 99.9 %"),
    ]
    counts = dict.fromkeys((label for _, label in edges), 0)
    for mass in store.captured_mass:
        counts[next(label for edge, label in edges if mass < edge)] += 1
    total = len(store.captured_mass)
    bars = [
        (label, float(count), f"{format_percent(count / total)} of tokens") for label, count in counts.items()
    ]
    title = "Probability inside the stored logprobs"
    return tag("figure", {"class": "wide"}, tag("figcaption", {}, tag("strong", {}, title)),
               bar_rows(bars, title=title, css="distill"))  # fmt: skip


def _data_tiles(facts: ReportFacts) -> list[tuple[str, str, str]]:
    entries = []
    if "prepare" in facts.manifests:
        rejected = (facts.count("prepare", "rejected") or 0) + (facts.count("prepare", "dropped") or 0)
        entries += [
            (format_integer(facts.count("prepare", "rows_in")), "rows in", "from all prompt sources"),
            (format_integer(facts.count("prepare", "kept")), "distinct prompts", _splits(facts)),
            (format_integer(facts.count("prepare", "duplicates")), "duplicates", "same messages, kept once"),
            (format_integer(rejected), "dropped or rejected", "with a reason each"),
        ]
    if facts.store is not None:
        stats = facts.store.stats
        entries += [
            (format_integer(stats.num_rows), "teacher completions", f"{stats.num_rejects:,} requests failed"),
            (
                format_integer(stats.num_tokens),
                "completion tokens",
                f"{stats.num_prompt_tokens:,} prompt tokens"
                if stats.num_prompt_tokens
                else "the answers came as text",
            ),
        ]
    return entries


def _splits(facts: ReportFacts) -> str:
    train, held_out = facts.count("prepare", "train"), facts.count("prepare", "eval")
    return f"{format_integer(train)} to train on, {format_integer(held_out)} held out"


def _bars(title: str, counts: Mapping[str, int]) -> Html | None:
    if not counts:
        return None
    total = sum(counts.values())
    bars = [
        (name, float(count), f"{count:,} ({format_percent(count / total)})")
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return tag(
        "figure",
        {"class": "wide"},
        tag("figcaption", {}, tag("strong", {}, title)),
        bar_rows(bars, title=title),
    )
