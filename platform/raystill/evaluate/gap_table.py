"""The gap table for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from raystill.evaluate.results import Estimate, GapClosed, Results, RowResult

NOT_AVAILABLE = "n/a"
# Narrow enough for 80 characters.
_COLUMNS = ("params", "right\n%", "95 % CI\n%", "JSON\n%", "tool\n%", "KL\nnats", "top-1\n%", "closed\n%")


def build_gap_table(results: Results) -> Table:
    """One line per model: what is right, how close it is to the teacher, the share of the gap closed."""
    table = Table(
        title=headline(results),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in results.rows:
        last = row is results.rows[-1]
        table.add_row(*_cells(row, results), style="bold" if last else "")
    teacher = results.settings.get("teacher")
    table.caption = (
        f"{results.num_prompts} held-out prompts; students greedy, teacher {teacher}. JSON: valid tool "
        "calls; tool: the right one; KL to the teacher per token; top-1: same favourite token; closed: share "
        "of the gap."
    )
    return table


def headline(results: Results) -> str:
    """One sentence: how much of the gap the final model closed."""
    if not results.rows:
        return f"{results.run}: nothing was evaluated"
    gap = results.gap_of(results.rows[-1].key)
    metric = "in exact match" if results.primary_metric == "exact_match" else "in KL to the teacher"
    if gap is None:
        return f"{results.run}: no trained student to compare"
    if gap.estimate is None:
        return f"{results.run}: no gap to close, {gap.reason}"
    return f"{results.run}: {format_percent(gap.estimate.value)} of the gap closed {metric}"


def format_count(count: int | None) -> str:
    """`1.9M` for a number of parameters."""
    if count is None:
        return NOT_AVAILABLE
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def format_percent(value: float | None) -> str:
    """`97.4 %`; nothing is rounded up to 100 or down to 0."""
    if value is None:
        return NOT_AVAILABLE
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        text = "99.9"
    if text in ("0.0", "-0.0"):
        text = "0.0" if value == 0 else ("<0.1" if value > 0 else "-0.0")
    return f"{text} %"


def format_interval(estimate: Estimate | None) -> str:
    """`95.1 to 98.7 %`, with an open end where the interval has none."""
    if estimate is None:
        return ""
    low = "-inf" if estimate.low is None else f"{100 * estimate.low:.1f}"
    high = "inf" if estimate.high is None else f"{100 * estimate.high:.1f}"
    return f"{low} to {high} %"


def _cells(row: RowResult, results: Results) -> list[Text]:
    kl = row.kl_to_teacher
    gap = results.gap_of(row.key)
    cells = [
        row.label,
        format_count(row.parameters),
        _rate(row.exact_match),
        _range(row.exact_match),
        _rate(row.tool_json_valid),
        _rate(row.tool_selected),
        "0" if row.key == "teacher" else (f"{kl.value:.3f}" if kl else NOT_AVAILABLE),
        "100.0" if row.key == "teacher" else _rate(row.top1_agreement),
        _closed(gap),
    ]
    return [Text(cell) for cell in cells]


def _rate(estimate: Estimate | None) -> str:
    return NOT_AVAILABLE if estimate is None else format_percent(estimate.value).removesuffix(" %")


def _range(estimate: Estimate | None) -> str:
    return format_interval(estimate).replace(" to ", "–").removesuffix(" %")


def _closed(gap: GapClosed | None) -> str:
    if gap is None:
        return ""
    return _rate(gap.estimate)
