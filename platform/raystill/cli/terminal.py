"""What commands write: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raystill.errors import Problem, RaystillError

RESULTS = Console(highlight=False, soft_wrap=True)
_WIDEST = 200
LOG = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_problems(problems: Sequence[Problem], title: str = "error") -> None:
    """Each problem as what, where, fix, on standard error."""
    for problem in problems:
        LOG.print(Text.assemble((f"{title}: ", "bold red"), problem.what))
        if problem.where:
            LOG.print(Text.assemble(("  where: ", "dim"), problem.where))
        if problem.fix:
            LOG.print(Text.assemble(("  fix:   ", "dim"), problem.fix))


def error_json(error: RaystillError) -> dict[str, Any]:
    """An error as the object that --json prints."""
    problems = [{"what": p.what, "where": p.where, "fix": p.fix} for p in error.problems]
    return {
        "error": {"type": error_class(error).__name__, "exit_code": error.exit_code, "problems": problems}
    }


def error_class(error: RaystillError) -> type[RaystillError]:
    """The class of ours that an error has; Ray hands on subclasses that it makes itself."""
    return next(base for base in type(error).__mro__ if base.__module__ == RaystillError.__module__)


def make_table(title: str, columns: Mapping[str, bool], rows: Sequence[Sequence[str]]) -> Table:
    """A table without a frame; `columns` says of each heading whether its numbers go to the right."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading, to_the_right in columns.items():
        table.add_column(heading, justify="right" if to_the_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(table: Table) -> None:
    """Print a table at its own width, so that nothing is cut off in a pipe or a narrow window."""
    width = Measurement.get(RESULTS, RESULTS.options.update(max_width=_WIDEST), table).maximum
    Console(width=max(width, RESULTS.width), highlight=False).print(table, crop=False)


def describe_counts(counts: Mapping[str, int]) -> str:
    """`48 rows, 36 train`: what a stage counted, zeros left out."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items() if value)


def human_seconds(seconds: float | None) -> str:
    """`12.3 s`, `4 min 5 s`, `2 h 3 min`; `?` for None."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def human_bytes(size: float | None) -> str:
    """`1.5 GB` and the like, in powers of ten; `?` for None."""
    if size is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_count(count: int | None) -> str:
    """`1.9 M` and the like; `?` for None."""
    if count is None:
        return "?"
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)
