"""What a benchmark returns: one JSON-able object, the same shape for all of them (and its Markdown table)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raystill.run.manifest import installed_packages
from raystill.run.publish import publish_file, write_json


@dataclass(frozen=True)
class BenchRow:
    """One measured case. `ours` and `peer` are medians in the metric's unit; `goal` is what `met` judges."""

    case: str
    metric: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    goal: str
    met: bool


@dataclass(frozen=True)
class BenchTable:
    """Further numbers that no single goal judges: a title, what they are, columns, and rows of cells."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]


def bench_result(name: str, rows: Iterable[BenchRow], tables: Iterable[BenchTable] = ()) -> dict[str, Any]:
    """The object that `raystill bench NAME --json` prints; it has `tables` where there are any."""
    more = [asdict(table) for table in tables]
    return {
        "bench": name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": installed_packages(),
        "rows": [asdict(row) for row in rows],
        **({"tables": more} if more else {}),
    }


def save_result(directory: Path, result: dict[str, Any]) -> None:
    """Publish NAME.json and NAME.md, which holds the same as a table."""
    name = result["bench"]
    write_json(directory / f"{name}.json", result)
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    text = f"# {name}\n\n{result['machine']}; {versions}\n\n{markdown_table(result)}"
    for table in result.get("tables", []):
        text += f"\n## {table['title']}\n\n{table['note']}\n\n{_lines(table['columns'], table['rows'])}"
    with publish_file(directory / f"{name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown_table(result: dict[str, Any]) -> str:
    """The result's rows as a Markdown table, for docs/benchmarks."""
    columns = ("case", "metric", "ours", "peer", "peer_name", "ratio", "goal", "met")
    return _lines(columns, [[row[column] for column in columns] for row in result["rows"]])


def _lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [
            f"{cell:.4g}" if isinstance(cell, float) else str("" if cell is None else cell) for cell in row
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
