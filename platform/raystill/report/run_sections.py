"""How it went: training curves, time, the export's proof, and what is needed to do it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raystill.report.charts import Line, bar_rows, legend, line_chart, stack
from raystill.report.facts import ReportFacts
from raystill.report.layout import format_duration, section, table
from raystill.report.markup import Child, Html, tag
from raystill.run.paths import StageName

_PANELS = (
    ("train/loss", "Loss", "nats per token", False),
    ("train/ce", "Cross entropy", "nats per token", False),
    ("train/kd_kl", "Teacher divergence", "nats per token", False),
    ("train/lr", "Learning rate", "", False),
    ("train/grad_norm", "Gradient norm", "before clipping", True),
    ("train/tok_s_useful", "Throughput", "tokens per second", False),
    ("train/mfu", "Utilisation", "share of the measured peak", False),
    ("rollout/share", "On-policy share", "of the rows of a step", False),
    ("rollout/tok_s", "Rollouts", "tokens per second", False),
    ("rollout/staleness", "Staleness of rollouts", "optimizer steps", False),
)
_STAGE_LABELS: dict[StageName, str] = {
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
_TRAINING: tuple[StageName, ...] = ("sft", "distill")


def render_curves(facts: ReportFacts) -> Html | None:
    """Loss and its terms, learning rate, gradient norm and speed over optimizer steps, stages together."""
    charts = [_panel(facts, name, title, unit, log_y=log_y) for name, title, unit, log_y in _PANELS]
    if not any(charts):
        return None
    keys = [(_STAGE_LABELS[stage], stage) for stage in _TRAINING if facts.curves.get(stage)]
    return section(
        "Training",
        "Horizontal axes count optimizer steps of each stage; hollow marks are the loss on "
        "held-out training rows.",
        legend(keys),
        stack(charts, "charts"),
    )


def render_time(facts: ReportFacts) -> Html | None:
    """Where the time went, and how fast each stage was."""
    if not facts.manifests:
        return None
    bars = [
        (_STAGE_LABELS[stage], manifest.seconds, format_duration(manifest.seconds))
        for stage, manifest in facts.manifests.items()
    ]
    rows = [
        [
            _STAGE_LABELS[stage],
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
            _STAGE_LABELS[outcome.stage],
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


def _panel(facts: ReportFacts, name: str, title: str, unit: str, *, log_y: bool) -> Html:
    lines = []
    for stage in _TRAINING:
        points = _points(facts.curves.get(stage, []), name)
        if points:
            lines.append(Line(_STAGE_LABELS[stage], points, stage))
        if name == "train/loss":
            held_out = _points(facts.curves.get(stage, []), "eval/loss")
            if held_out:
                lines.append(Line(f"{_STAGE_LABELS[stage]}, held out", held_out, stage, marks=True))
    return line_chart(lines, title=title, unit=unit, log_y=log_y)


def _points(records: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(record["step"]), float(record[name]))
        for record in records
        if isinstance(record.get(name), int | float) and not isinstance(record.get(name), bool)
    ]


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
