"""The page of a sweep: the best trial, parallel coordinates, importance of each key, and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raystill.report.charts import Line, bar_rows, format_tick, line_chart, stack
from raystill.report.document import render_document
from raystill.report.layout import format_duration, section, table, tiles
from raystill.report.markup import Child, Html, tag
from raystill.report.parallel import Path as Course
from raystill.report.parallel import parallel_coordinates, shorten
from raystill.report.sweep_facts import SweepFacts, SweepTrial
from raystill.run.publish import publish_file

_MOST_CURVES = 40


def render_sweep(facts: SweepFacts) -> list[Html]:
    """What the trials were and became, and which values mattered."""
    parts = (_courses(facts), _importance(facts), _curves(facts), _table(facts))
    return [part for part in parts if part is not None]


def build_sweep_report(facts: SweepFacts, path: Path) -> None:
    """Publish the page at `path`."""
    body: list[Child] = [
        tag(
            "header",
            {},
            tag("p", {"class": "eyebrow"}, "Sweep"),
            tag("h1", {}, facts.name),
            tiles(facts.facts),
        ),
        *render_sweep(facts),
        section(
            "The winner",
            "Its whole configuration is in best/config.yaml, its checkpoint beside it.",
            tag("pre", {}, facts.reproduce),
        ),
    ]
    with publish_file(path) as temporary:
        temporary.write_text(render_document(f"{facts.name}: sweep", body), encoding="utf-8")


def measure_importance(trials: Sequence[SweepTrial]) -> list[tuple[str, float]]:
    """How much of the scores' spread goes with each key, from 0 to 1, largest first.

    Numbers: Spearman's rank correlation, squared. Words: the share of the variance of ranks that lies between
    the groups (eta squared). Both look at one key at a time, so shares don't add up to 1.
    """
    scored = [trial for trial in trials if trial.score is not None and math.isfinite(trial.score)]
    if len(scored) < 3:
        return []
    ranks = _ranks([trial.score or 0.0 for trial in scored])
    found = []
    for path in dict.fromkeys(path for trial in scored for path in trial.params):
        values = [trial.params.get(path) for trial in scored]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            share = _correlation(_ranks([float(value) for value in values if value is not None]), ranks) ** 2
        else:
            share = _between_groups([str(value) for value in values], ranks)
        found.append((path, share))
    return sorted(found, key=lambda item: -item[1])


def _courses(facts: SweepFacts) -> Html | None:
    scored = [trial for trial in facts.trials if trial.score is not None]
    if not scored:
        return None
    order = sorted(scored, key=lambda trial: (trial.score or 0.0) * (1 if facts.mode == "min" else -1))
    courses = [
        Course(
            label=f"trial {trial.number}",
            values=[*trial.params.values(), trial.score],
            css="distill" if trial.number == facts.best else "sft" if rank < len(order) / 4 else "untrained",
        )
        for rank, trial in enumerate(order)
    ]
    names = [*order[0].params, facts.metric]
    return section(
        "Values and results",
        "One line per trial, from its values on the left to its result on the right. Green: the best trial; "
        "amber: the best quarter.",
        tag("div", {"class": "card"}, parallel_coordinates(names, list(reversed(courses)), title="Trials")),
    )


def _importance(facts: SweepFacts) -> Html | None:
    shares = measure_importance(facts.trials)
    if not shares:
        return None
    bars = [(path, share, f"{share:.2f}") for path, share in shares]
    return section(
        "What mattered",
        "How much of the trials' ranking goes with each key alone; of few trials, chance explains a lot.",
        tag("div", {"class": "card"}, bar_rows(bars, title="Importance of keys")),
    )


def _curves(facts: SweepFacts) -> Html | None:
    lines = [
        Line(f"trial {trial.number}", trial.points, "distill" if trial.number == facts.best else "untrained")
        for trial in facts.trials[:_MOST_CURVES]
        if len(trial.points) > 1
    ]
    lines.sort(key=lambda line: line.css == "distill")
    chart = line_chart(lines, title=facts.metric, unit="over optimizer steps") if lines else None
    return section("Courses", "", stack([chart], "charts")) if chart else None


def _table(facts: SweepFacts) -> Html:
    paths = list(dict.fromkeys(path for trial in facts.trials for path in trial.params))
    rows: list[list[Child]] = [
        [
            f"{trial.number}{' (best)' if trial.number == facts.best else ''}",
            trial.outcome + (f": {trial.problem}" if trial.problem else ""),
            "–" if trial.score is None else f"{trial.score:.5g}",
            *(_shown(trial.params.get(path)) for path in paths),
            format_duration(trial.seconds),
        ]
        for trial in facts.trials
    ]
    return section(
        "Trials",
        "Also in trials.parquet and trials.csv.",
        table(
            ["trial", "outcome", facts.metric, *(shorten(path, paths) for path in paths), "time"],
            rows,
            caption="Every trial.",
            numeric_from=2,
        ),
    )


def _shown(value: Any) -> str:
    return format_tick(value) if isinstance(value, float) else str(value)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(values)
    return [(order.index(value) + len(order) - 1 - order[::-1].index(value)) / 2 for value in values]


def _correlation(left: Sequence[float], right: Sequence[float]) -> float:
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    both = sum((a - mean_left) * (b - mean_right) for a, b in zip(left, right, strict=True))
    spread = math.sqrt(sum((a - mean_left) ** 2 for a in left) * sum((b - mean_right) ** 2 for b in right))
    return both / spread if spread else 0.0


def _between_groups(groups: Sequence[str], ranks: Sequence[float]) -> float:
    mean = sum(ranks) / len(ranks)
    total = sum((rank - mean) ** 2 for rank in ranks)
    between = 0.0
    for group in set(groups):
        members = [rank for name, rank in zip(groups, ranks, strict=True) if name == group]
        between += len(members) * (sum(members) / len(members) - mean) ** 2
    return between / total if total else 0.0
