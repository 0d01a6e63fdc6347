"""How long it took, the export's proof, and what is needed to do it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raystill.report.charts import bar_rows
from raystill.report.facts import ReportFacts
from raystill.report.layout import STAGE_LABELS, format_duration, section, table
from raystill.report.markup import Child, Html, tag
from raystill.run.paths import StageName


def render_time(facts: ReportFacts) -> Html | None:
    """Where the time went, and how fast each stage was."""
    if not facts.manifests:
        return None
    bars = [
        (STAGE_LABELS[stage], manifest.seconds, format_duration(manifest.seconds))
        for stage, manifest in facts.manifests.items()
    ]
    rows = [
        [
            STAGE_LABELS[stage],
            format_duration(manifest.seconds),
            _throughput(facts, stage),
            _machine(facts, stage),
        ]
        for stage, manifest in facts.manifests.items()
    ]
    return section(
        "Time",
        "Wall-clock time of the work itself; a complete stage is skipped when the run is started again.",
        tag("div", {"class": "card"}, bar_rows(bars, title="Time per stage")),
        table(["stage", "time", "throughput", "where"], rows, caption="Time and throughput per stage."),
        _outcome_table(facts),
    )


def _outcome_table(facts: ReportFacts) -> Html | None:
    """What was planned beside what happened."""
    if not facts.outcomes:
        return None
    rows: list[list[Child]] = [
        [
            STAGE_LABELS[outcome.stage],
            *_pair(outcome.expected.seconds, outcome.happened.seconds, format_duration),
            *_pair(outcome.expected.tokens, outcome.happened.tokens, lambda number: f"{number:,.0f}"),
            *_pair(outcome.expected.disk_bytes, outcome.happened.disk_bytes, _megabytes),
        ]
        for outcome in facts.outcomes
    ]
    head = ["stage", "planned time", "time", "planned tokens", "tokens", "planned disk", "disk"]
    return table(head, rows, caption="The plan that was made before each stage, and what happened.")


def _pair(planned: float | None, happened: float | None, show: Callable[[float], str]) -> tuple[Child, Child]:
    return ("–" if planned is None else show(planned), "–" if happened is None else show(happened))


def _megabytes(number: float) -> str:
    return f"{number / 1e6:,.1f} MB"


def render_export(facts: ReportFacts) -> Html | None:
    """What was exported, and whether another engine agreed with it."""
    verdict = facts.verdict
    if verdict is None:
        return None
    proof = verdict.get("verification", {})
    verified = bool(proof.get("verified"))
    mark = tag(
        "span",
        {"class": "mark-right" if verified else "mark-wrong"},
        "✓ verified" if verified else "not verified",
    )
    rows: list[list[Child]] = [
        ["trained model", str(verdict.get("source_stage"))],
        ["weights", f"{verdict.get('dtype')}, {verdict.get('parameters', 0):,} parameters, safetensors"],
    ]
    if verified:
        rows += [
            ["compared with", str(proof.get("engine"))],
            [
                "prompts",
                f"{proof.get('equal')} of {proof.get('prompts')} equal, {len(proof.get('ties', []))} ties",
            ],
            ["tolerance", f"asked {proof.get('tie_tolerance')}, largest tie {proof.get('largest_tie')}"],
        ]
    rows += [[f"sha256 of {name}", tag("code", {}, digest)] for name, digest in _digests(verdict)]
    return section(
        "Export",
        "",
        tag("p", {"class": "verdict"}, mark, f" {_sentence(str(proof.get('reason', '')))}"),
        table(["what", "value"], rows, caption="What was exported.", numeric_from=9),
    )


def render_reproduction(facts: ReportFacts) -> Html:
    """Versions, the command, and every setting."""
    latest = list(facts.manifests.values())[-1] if facts.manifests else None
    versions: list[list[Child]] = []
    if latest is not None:
        packages = sorted(latest.packages.items())
        versions = [["raystill", latest.code_version], *_pairs(packages)]
    return section(
        "Reproduce",
        "The resolved configuration below holds every value, defaults included.",
        tag("pre", {"class": "command"}, "raystill run --config resolved.yaml"),
        table(["package", "version"], versions, caption="Versions that made these numbers.", numeric_from=9)
        if versions
        else None,
        tag(
            "details",
            {},
            tag("summary", {}, "The exact configuration"),
            tag("pre", {"class": "config"}, facts.resolved_config),
        ),
    )


def _throughput(facts: ReportFacts, stage: StageName) -> str:
    manifest = facts.manifests[stage]
    if manifest.seconds <= 0:
        return "–"
    if stage == "generate" and facts.store is not None:
        return f"{facts.store.stats.num_tokens / manifest.seconds:,.0f} tokens/s with start-up"
    tokens = manifest.counts.get("tokens_trained")
    if tokens:
        seconds = float(manifest.metrics.get("train_seconds") or manifest.seconds)
        return f"{tokens / seconds:,.0f} completion tokens/s"
    rows = manifest.counts.get("rows_in") or manifest.counts.get("prompts")
    return f"{rows / manifest.seconds:,.0f} prompts/s" if rows else "–"


def _machine(facts: ReportFacts, stage: StageName) -> str:
    metrics = facts.manifests[stage].metrics
    device = metrics.get("device")
    if not device:
        return "–"
    workers = metrics.get("num_workers")
    return f"{device}, {workers} worker{'s' if workers != 1 else ''}" if workers else str(device)


def _pairs(entries: list[tuple[str, str]]) -> list[list[Child]]:
    return [[name, value] for name, value in entries]


def _digests(verdict: dict[str, Any]) -> list[tuple[str, str]]:
    recorded = verdict.get("exported_sha256")
    return (
        [(str(name), str(digest)) for name, digest in recorded.items()] if isinstance(recorded, dict) else []
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
