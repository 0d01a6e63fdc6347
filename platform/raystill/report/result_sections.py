"""What was achieved: the headline, the gap as a plot and as a table, and completions side by side."""

from __future__ import annotations

import json
from typing import Any

from raystill.evaluate.gap_table import NOT_AVAILABLE, format_count, format_interval, format_percent
from raystill.evaluate.results import Estimate, Results, RowResult
from raystill.report.charts import Axis, Dot, dot_plot, nice_ticks
from raystill.report.facts import ReportFacts
from raystill.report.layout import ROLE_CSS, format_duration, role_label, section, table, tiles
from raystill.report.markup import Child, Html, join, tag

_LONGEST_SAMPLE = 1200


def render_header(facts: ReportFacts) -> Html:
    """Run name, the one number that matters, and the sentence that explains it."""
    results = facts.results
    children: list[Child] = [
        tag("p", {"class": "eyebrow"}, "raystill · distillation report"),
        tag("h1", {}, facts.config.run.name),
    ]
    if results is None:
        done = ", ".join(facts.manifests) or "nothing"
        children.append(tag("p", {"class": "summary"}, f"Not evaluated yet. Complete so far: {done}."))
    else:
        children += [
            _headline(results),
            tag("p", {"class": "summary"}, _summary(results)),
            _tiles(facts, results),
        ]
    children += [tag("p", {"class": "note", "role": "note"}, note) for note in facts.notes]
    return tag("header", {}, *children)


def render_gap(facts: ReportFacts) -> Html | None:
    """The gap, drawn and tabulated."""
    results = facts.results
    if results is None or not results.rows:
        return None
    lead = (
        f"{results.num_prompts:,} held-out prompts that no training stage saw. Students' completions are "
        f"greedy, at most {results.settings.get('max_new_tokens')} tokens; the teacher's are the stored "
        f"ones, {results.settings.get('teacher')}. Whiskers and ranges are 95 % confidence intervals."
    )
    missing = results.num_prompts_without_teacher_output
    notes = tag(
        "p", {"class": "note"}, f"{missing:,} held-out prompts have no teacher output and are left out."
    )
    return section(
        "The gap",
        lead,
        tag("div", {"class": "card"}, _gap_plot(results)),
        _gap_table(results),
        _task_table(results),
        notes if missing else None,
    )


def render_samples(facts: ReportFacts) -> Html | None:
    """Completions of the teacher and of each model for the same prompts."""
    if not facts.completions or facts.results is None:
        return None
    shown: list[tuple[str, str]] = [
        (row.key, row.label) for row in facts.results.rows if f"{row.key}_completion" in facts.completions[0]
    ]
    cards = [_sample(row, shown) for row in facts.completions]
    return section(
        "Side by side",
        "Chosen by the hash of the prompt's id, taking turns between tasks: neither the best nor the worst.",
        *cards,
    )


def _headline(results: Results) -> Html:
    gap = results.gap_of(results.rows[-1].key) if results.rows else None
    if gap is None or gap.estimate is None:
        reason = gap.reason if gap is not None else "no trained student was evaluated"
        return tag(
            "p", {"class": "headline"}, tag("span", {"class": "headline-text"}, f"No gap closed: {reason}.")
        )
    metric = "in exact match" if gap.metric == "exact_match" else "in KL to the teacher"
    return tag(
        "p",
        {"class": "headline"},
        tag("span", {"class": "headline-number"}, format_percent(gap.estimate.value)),
        tag(
            "span",
            {"class": "headline-text"},
            f"of the gap between the untrained student and its teacher is closed {metric}. ",
            tag("span", {"class": "muted"}, f"95 % interval {format_interval(gap.estimate)}."),
        ),
    )


def _summary(results: Results) -> str:
    by_key = {row.key: row for row in results.rows}
    if results.primary_metric != "exact_match":
        return "These prompts have no single right answer, so distance from the teacher is what counts."
    parts = []
    for key, phrase in (
        ("distill", "The distilled student answers {} correctly"),
        ("sft", "fine-tuning alone reaches {}"),
        ("untrained", "before training it was {}"),
        ("teacher", "the teacher itself gets {}"),
    ):
        row = by_key.get(key)  # type: ignore[call-overload]
        if row is not None and row.exact_match is not None:
            parts.append(phrase.format(format_percent(row.exact_match.value)))
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _tiles(facts: ReportFacts, results: Results) -> Html:
    final, teacher = results.rows[-1], results.row("teacher")
    entries = [(format_count(final.parameters), "student parameters", _compression(final, teacher))]
    if final.kl_to_teacher is not None:
        entries.append((f"{final.kl_to_teacher.value:.3f}", "KL to the teacher", "nats per token"))
    if final.top1_agreement is not None:
        entries.append(
            (
                format_percent(final.top1_agreement.value),
                "top-1 agreement",
                "same favourite token as the teacher",
            )
        )
    seconds = sum(manifest.seconds for manifest in facts.manifests.values())
    entries.append((format_duration(seconds), "from prompts to here", f"{len(facts.manifests)} stages"))
    return tiles(entries)


def _compression(final: RowResult, teacher: RowResult | None) -> str:
    if teacher is None or not teacher.parameters or not final.parameters:
        return "all of them trained or merged"
    return f"{final.parameters / teacher.parameters:.0%} of the teacher's {format_count(teacher.parameters)}"


def _gap_plot(results: Results) -> Html:
    if results.primary_metric == "exact_match":
        dots = [_dot(row, row.exact_match, 100.0, _percent_text(row.exact_match)) for row in results.rows]
        ticks = [(float(x), f"{x} %") for x in range(0, 101, 20)]
        low, high, title = 0.0, 100.0, "Exact match on held-out prompts"
    else:
        dots = [_kl_dot(row) for row in results.rows]
        high = 1.05 * max((dot.high or dot.value for dot in dots if dot), default=1.0) or 1.0
        ticks = [(x, f"{x:g}") for x in nice_ticks(0.0, high, 5)]
        low, title = 0.0, "KL to the teacher in nats per token (less is closer)"
    kept = {row.key: dot for row, dot in zip(results.rows, dots, strict=True) if dot is not None}
    guide, origin = (kept[key].value if key in kept else None for key in ("teacher", "untrained"))
    plot = dot_plot(list(kept.values()), Axis(low, high, ticks, guide, origin), title=title)
    return join([tag("p", {"class": "plot-title"}, title), plot])


def _dot(row: RowResult, estimate: Estimate | None, scale: float, text: str) -> Dot | None:
    if estimate is None:
        return None
    low, high = (None if bound is None else scale * bound for bound in (estimate.low, estimate.high))
    is_trained = row.key in ("sft", "distill")
    return Dot(row.label, scale * estimate.value, low, high, text, ROLE_CSS[row.key], stem=is_trained)


def _kl_dot(row: RowResult) -> Dot | None:
    if row.key == "teacher":
        return Dot(row.label, 0.0, None, None, "0", ROLE_CSS[row.key])
    return _dot(row, row.kl_to_teacher, 1.0, _number(row.kl_to_teacher, 3))


def _percent_text(estimate: Estimate | None) -> str:
    return NOT_AVAILABLE if estimate is None else format_percent(estimate.value)


def _gap_table(results: Results) -> Html:
    has_tools = any(row.tool_json_valid is not None for row in results.rows)
    has_exact = results.primary_metric == "exact_match"
    headers = ["model", "parameters"]
    headers += ["exact match"] if has_exact else []
    headers += ["valid tool JSON", "right tool"] if has_tools else []
    headers += ["KL to teacher", "top-1 agreement", "perplexity", "tokens", "gap closed"]
    rows = [_gap_row(row, results, has_exact=has_exact, has_tools=has_tools) for row in results.rows]
    caption = (
        "KL(teacher ‖ model) in nats per token of the teacher's completions; perplexity on the same tokens; "
        "tokens per completion."
    )
    return table(headers, rows, caption=caption)


def _gap_row(row: RowResult, results: Results, *, has_exact: bool, has_tools: bool) -> list[Child]:
    is_teacher = row.key == "teacher"
    gap = results.gap_of(row.key)
    cells: list[Child] = [role_label(row.key, row.label), format_count(row.parameters)]
    if has_exact:
        cells.append(_with_range(row.exact_match))
    if has_tools:
        cells += [_percent_text(row.tool_json_valid), _percent_text(row.tool_selected)]
    cells += [
        "0" if is_teacher else _number(row.kl_to_teacher, 3),
        "100 %" if is_teacher else _percent_text(row.top1_agreement),
        "–" if is_teacher else _number(row.perplexity, 2),
        f"{row.mean_completion_tokens:.1f}",
        _with_range(gap.estimate) if gap is not None and gap.estimate is not None else "–",
    ]
    return cells


def _task_table(results: Results) -> Html | None:
    tasks = [
        task
        for task in results.num_prompts_by_task
        if any(task in r.exact_match_by_task for r in results.rows)
    ]
    if len(tasks) < 2:
        return None
    headers = ["exact match by task", *(f"{task} ({results.num_prompts_by_task[task]:,})" for task in tasks)]
    rows = [
        [role_label(row.key, row.label), *(_with_range(row.exact_match_by_task.get(task)) for task in tasks)]
        for row in results.rows
    ]
    return table(headers, rows, caption="Exact match for each kind of task, with the number of prompts.")


def _with_range(estimate: Estimate | None) -> Child:
    if estimate is None:
        return NOT_AVAILABLE
    return join([format_percent(estimate.value), tag("span", {"class": "range"}, format_interval(estimate))])


def _number(estimate: Estimate | None, digits: int) -> str:
    return NOT_AVAILABLE if estimate is None else f"{estimate.value:,.{digits}f}"


def _sample(row: dict[str, Any], shown: list[tuple[str, str]]) -> Html:
    columns = [
        tag(
            "div",
            {"class": f"answer {ROLE_CSS[key]}"},
            tag("h4", {}, role_label(key, label), _mark(row.get(f"{key}_correct"))),
            tag("pre", {}, _shorten(row[f"{key}_completion"])),
        )
        for key, label in shown
    ]
    reference = row.get("reference")
    expected = (
        tag(
            "p",
            {"class": "expected"},
            tag("span", {"class": "muted"}, "expected "),
            tag("code", {}, _shorten(reference)),
        )
        if reference
        else None
    )
    return tag(
        "article",
        {"class": "sample card"},
        tag("p", {"class": "eyebrow"}, f"{row['task']} · {row['prompt_id']}"),
        tag("pre", {"class": "prompt"}, _shorten(_prompt_text(row["messages"]))),
        expected,
        tag("div", {"class": "answers"}, *columns),
    )


def _mark(correct: bool | None) -> Html | None:
    if correct is None:
        return None
    return tag(
        "span", {"class": "mark-right" if correct else "mark-wrong"}, "✓ right" if correct else "✗ wrong"
    )


def _prompt_text(messages: str) -> str:
    try:
        parsed = json.loads(messages)
        if len(parsed) == 1:
            return str(parsed[0]["content"])
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in parsed)
    except (ValueError, KeyError, TypeError):
        return messages


def _shorten(text: str | None) -> str:
    if not text:
        return "(empty)"
    if len(text) <= _LONGEST_SAMPLE:
        return text
    return f"{text[:_LONGEST_SAMPLE]}\n… {len(text) - _LONGEST_SAMPLE:,} more characters"
