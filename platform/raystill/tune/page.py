"""The sweep's page, from its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raystill.config.tune import TuneSection
from raystill.report.layout import format_duration
from raystill.report.sweep_facts import SweepFacts, SweepTrial
from raystill.report.sweep_page import build_sweep_report
from raystill.run.publish import write_json

if TYPE_CHECKING:
    from raystill.tune.sweep import SweepResult


def save_page(result: SweepResult, tune: TuneSection) -> None:
    """Publish report.html of a sweep, and what the report of its run needs to show the same."""
    best = result.best.last if result.best is not None else None
    outcomes = [record.outcome for record in result.trials]
    facts = [
        ("–" if best is None else f"{best.value:.5g}", f"best {tune.metric}", f"{tune.mode} is good"),
        (
            str(len(outcomes)),
            "trials",
            ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes)),
        ),
        (
            str(result.teacher_passes),
            "forward passes of the teacher",
            f"{result.teacher_rows} rows asked for: trials train from the store",
        ),
        (format_duration(result.seconds), "this call", f"{result.concurrency.trials} trials at once"),
    ]
    trials = [
        SweepTrial(
            number=record.number,
            outcome=record.outcome,
            score=None if record.last is None else record.last.value,
            params=record.params,
            points=[(report.step, report.value) for report in record.reports],
            seconds=record.seconds,
            problem=record.problem,
        )
        for record in result.trials
    ]
    page = SweepFacts(
        name=result.paths.root.name,
        metric=tune.metric,
        mode=tune.mode,
        trials=trials,
        best=None if result.best is None else result.best.number,
        facts=facts,
        reproduce=f"raystill run --config {result.best_config}"
        if result.best_config
        else "no trial finished",
    )
    build_sweep_report(page, result.paths.report)
    write_json(result.paths.page_facts, page.to_json())
