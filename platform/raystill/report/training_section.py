"""How training went: what the student learnt from, the curves, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.config.signal_source import resolve_kd_models, resolve_signal_source
from raystill.report.charts import Line, bar_rows, legend, line_chart, stack
from raystill.report.facts import ReportFacts
from raystill.report.layout import STAGE_LABELS, section, table
from raystill.report.markup import Child, Html, tag
from raystill.run.paths import StageName

_PANELS = (
    ("train/loss", "Loss", "nats per token", False),
    ("train/ce", "Cross entropy", "nats per token", False),
    ("train/kd_kl", "Teacher divergence", "nats per token", False),
    ("train/hidden", "Hidden states", "distance per token", False),
    ("train/lr", "Learning rate", "", False),
    ("train/grad_norm", "Gradient norm", "before clipping", True),
    ("train/tok_s_useful", "Throughput", "tokens per second", False),
    ("train/mfu", "Utilisation", "share of the measured peak", False),
    ("rollout/share", "On-policy share", "of the rows of a step", False),
    ("rollout/tokens", "Length of rollouts", "tokens", False),
    ("rollout/ended", "Rollouts that end by themselves", "share", False),
    ("rollout/staleness", "Staleness of rollouts", "optimizer steps", False),
    ("rollout/tok_s", "Speed of rollouts", "tokens per second", False),
)
_HELD_OUT = {"train/loss": "eval/loss", "train/ce": "eval/ce", "train/kd_kl": "eval/kd_kl"}
_PARTS = {
    "data": "Rows to tensors",
    "rollout": "Writing rollouts",
    "teacher": "Teacher's forward pass",
    "forward": "Student's forward pass, loss",
    "backward": "Backward pass",
    "reduce": "Sums over workers",
    "optimizer": "Optimizer",
    "save": "Checkpoints",
}
_REST = "Logs and the rest"
_SMALLEST = 0.005
_TRAINING: tuple[StageName, ...] = ("sft", "distill")


def render_training(facts: ReportFacts) -> Html | None:
    """What distillation learnt from; loss and its terms, learning rate, speed; the time of a step."""
    charts = [_panel(facts, name, title, unit, log_y=log_y) for name, title, unit, log_y in _PANELS]
    if not any(charts):
        return None
    keys = [(STAGE_LABELS[stage], stage) for stage in _TRAINING if facts.curves.get(stage)]
    lead = (
        "Horizontal axes count optimizer steps of each stage; hollow marks are held-out training rows, as "
        "they are stored."
    )
    if _writes_rollouts(facts):
        lead += " Distillation's own curves are about text that the student wrote."
    taught = _taught(facts) if facts.curves.get("distill") else []
    return section(
        "Training",
        lead,
        legend(keys),
        stack(charts, "charts"),
        stack([_time_of(facts, stage) for stage in _TRAINING], "panels"),
        table(["distillation", "value"], taught, caption="What the student learnt from.", numeric_from=9)
        if taught
        else None,
    )


def time_shares(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Each part's share of the wall time of training, in the order of a step; empty without such lines.

    Lines count by the seconds that they are about: where rollouts are made for many steps at once, windows
    differ.
    """
    timed = [record for record in records if isinstance(record.get("time/seconds"), int | float)]
    total = sum(float(record["time/seconds"]) for record in timed)
    if total <= 0:
        return {}
    shares = {
        label: sum(record.get(f"time/{part}", 0.0) * record["time/seconds"] for record in timed) / total
        for part, label in _PARTS.items()
    }
    return shares | {_REST: max(1.0 - sum(shares.values()), 0.0)}


def _panel(facts: ReportFacts, name: str, title: str, unit: str, *, log_y: bool) -> Html:
    lines = []
    for stage in _TRAINING:
        records = facts.curves.get(stage, [])
        if points := _points(records, name):
            lines.append(Line(STAGE_LABELS[stage], points, stage))
        held_out = _points(records, _HELD_OUT.get(name, ""))
        if points and held_out:
            lines.append(Line(f"{STAGE_LABELS[stage]}, held out", held_out, stage, marks=True))
    return line_chart(lines, title=title, unit=unit, log_y=log_y)


def _points(records: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(record["step"]), float(record[name]))
        for record in records
        if isinstance(record.get(name), int | float) and not isinstance(record.get(name), bool)
    ]


def _time_of(facts: ReportFacts, stage: StageName) -> Html | None:
    """A stage's time by part of a step, without the parts that take next to nothing."""
    shares = time_shares(facts.curves.get(stage, []))
    bars = [(label, share, f"{100 * share:.0f} %") for label, share in shares.items() if share >= _SMALLEST]
    if not bars:
        return None
    title = f"{STAGE_LABELS[stage]}: where the time of a step goes"
    return tag("div", {}, tag("p", {"class": "plot-title"}, title), bar_rows(bars, title=title, css=stage))


def _writes_rollouts(facts: ReportFacts) -> bool:
    return any("rollout/share" in record for record in facts.curves.get("distill", []))


def _taught(facts: ReportFacts) -> list[list[Child]]:
    """The teacher, the loss and, where the student writes itself, how it did, as rows of a table."""
    config = facts.config
    if config.train.distillation is None:
        return []
    losses = config.losses
    kd = config.train.distillation.knowledgedistillation
    temperature = losses.kd_temperature if losses.kd_temperature is not None else kd.loss.temperature
    rows: list[list[Child]] = [["teacher", _teacher(config)]]
    if isinstance(temperature, int | float):
        rows.append(["divergence", f"{losses.divergence}, temperature {temperature:g}"])
    else:
        rows.append(["divergence", f"{losses.divergence}, temperature by a {temperature.type} schedule"])
    if _writes_rollouts(facts):
        rows += _rollout_rows(facts)
    return rows


def _teacher(config: Config) -> str:
    source = resolve_signal_source(config)
    if source == "store":
        kind = config.teacher.signals.kind
        k = config.losses.num_logprobs or config.teacher.signals.num_logprobs
        return f"the store: {f'top {k}' if kind == 'topk' else kind} of every token"
    section = config.train.distillation.teacher if config.train.distillation else None
    names = ", ".join(Path(model.name).name for model in resolve_kd_models(config))
    place = "in the training workers" if section is None or section.worker is None else "in its own process"
    best = section.num_logprobs if section else None
    seen = f"best {best} tokens of both sides" if best else "whole distributions"
    return f"{names}, {place}; {seen}"


def _rollout_rows(facts: ReportFacts) -> list[list[Child]]:
    assert facts.config.train.distillation is not None
    rollouts = facts.config.train.distillation.teacher.rollouts
    records = facts.curves["distill"]
    rows: list[list[Child]] = [
        [
            "rows that the student wrote",
            f"{100 * _mean(records, 'rollout/share'):.0f} %, weights renewed every {rollouts.sync_every} "
            f"step{'s' if rollouts.sync_every > 1 else ''}, {rollouts.engine}",
        ]
    ]
    if any("rollout/tokens" in record for record in records):
        rows.append(
            [
                "their length",
                f"{_mean(records, 'rollout/tokens'):.1f} tokens of at most {rollouts.max_new_tokens}; "
                f"{100 * _mean(records, 'rollout/ended'):.0f} % wrote their own end",
            ]
        )
    shares = time_shares(records)
    if shares:
        seconds = sum(record["time/seconds"] for record in records if "time/seconds" in record)
        share = shares[_PARTS["rollout"]]
        rows.append(["time for rollouts", f"{100 * share:.0f} % of training, {share * seconds:,.1f} s"])
    return rows


def _mean(records: Sequence[dict[str, Any]], name: str) -> float:
    values = [float(record[name]) for record in records if name in record]
    return sum(values) / len(values)
