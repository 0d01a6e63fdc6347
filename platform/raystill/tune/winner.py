"""What a sweep leaves behind: the table of trials, and the best one's configuration and checkpoint."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

from raystill.checkpoint.store import latest_valid
from raystill.config.schema import Config
from raystill.config.yaml_text import render_config
from raystill.run.publish import publish_directory, publish_file, write_json
from raystill.run.sweep_paths import SweepPaths
from raystill.tune.records import TrialRecord
from raystill.tune.trial_config import apply_params

FIXED_COLUMNS = (
    "trial",
    "outcome",
    "score",
    "step",
    "percent",
    "reports",
    "seconds",
    "train_seconds",
    "problem",
)


def trial_rows(records: list[TrialRecord]) -> list[dict[str, Any]]:
    """The trials as flat rows: what happened, then one column per key of the space."""
    rows = []
    for record in records:
        last = record.last
        rows.append(
            {
                "trial": record.number,
                "outcome": record.outcome,
                "score": None if last is None else last.value,
                "step": None if last is None else last.step,
                "percent": None if last is None else last.percent,
                "reports": len(record.reports),
                "seconds": round(record.seconds, 3),
                "train_seconds": round(record.train_seconds, 3),
                "problem": record.problem,
            }
            | {
                path: value if isinstance(value, int | float | str | bool) else json.dumps(value)
                for path, value in record.params.items()
            }
        )
    return rows


def save_table(sweep: SweepPaths, records: list[TrialRecord]) -> None:
    """Publish trials.parquet and trials.csv. A parameter with values of several types is a column of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = trial_rows(records)
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(FIXED_COLUMNS)
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 and kinds != {int, float}:
            columns[name] = [None if value is None else str(value) for value in values]
        elif kinds == {int, float}:
            columns[name] = [None if value is None else float(value) for value in values]
    with publish_file(sweep.table) as temporary:
        pq.write_table(pa.table(columns), temporary)
    with publish_file(sweep.csv) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in names])


def _cell(value: Any) -> Any:
    """A spreadsheet must not take text for a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return value


def save_winner(sweep: SweepPaths, base: Config, winner: TrialRecord, checkpoints: Path, store: str) -> Path:
    """Publish best/: the winner's newest checkpoint (links, no second copy) and its whole configuration.

    The configuration names the sweep's store, so a run of it asks the teacher nothing, and a run name of
    its own.
    """
    run = base.run.model_copy(update={"name": f"{base.run.name}-{sweep.root.name}"[:100]})
    teacher = base.teacher
    if teacher.base.from_store is None:
        teacher = teacher.model_copy(update={"store": teacher.store.model_copy(update={"path": store})})
    config = apply_params(base.model_copy(update={"run": run, "teacher": teacher}), winner.params)
    newest = latest_valid(checkpoints).path
    with publish_directory(sweep.best) as temporary:
        if newest is not None:
            shutil.copytree(newest, temporary / "checkpoint" / newest.name, copy_function=_link_or_copy)
        text = f"# Trial {winner.number} of the sweep {sweep.root.name}: the best one, with all its values.\n"
        (temporary / "config.yaml").write_text(text + render_config(config), encoding="utf-8")
        last = winner.last
        write_json(
            temporary / "trial.json",
            {
                "number": winner.number,
                "params": winner.params,
                "score": None if last is None else last.value,
                "step": None if last is None else last.step,
            },
        )
    return sweep.best / "config.yaml"


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
