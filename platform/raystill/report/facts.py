"""What a report is made from: everything that is complete in a run directory, read once.

A stage without a manifest doesn't exist yet and simply has no section.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.cluster.forecast import Outcome, compare_forecast
from raystill.config.schema import Config
from raystill.config.yaml_text import render_config
from raystill.errors import DataError
from raystill.evaluate.completions import load_completions
from raystill.evaluate.results import Results, load_results
from raystill.report.sweep_facts import SweepFacts, load_sweeps
from raystill.run.manifest import Manifest, load_manifest
from raystill.run.paths import STAGE_NAMES, RunPaths, StageName
from raystill.store.reader import iter_tables
from raystill.store.stats import StoreStats, compute_stats
from raystill.store.store import TeacherStore, load_store

_SAMPLED_ROWS = 20_000


@dataclass(frozen=True)
class StoreFacts:
    """The store's own numbers, and values of a sample of its rows for the histograms.

    `captured_mass` is the probability inside the stored top k, one entry per sampled token.
    """

    stats: StoreStats
    prompt_tokens: list[int]
    completion_tokens: list[int]
    captured_mass: list[float]


@dataclass(frozen=True)
class ReportFacts:
    """All that the sections show. None or empty where a stage is not complete."""

    config: Config
    manifests: dict[StageName, Manifest]
    results: Results | None
    completions: list[dict[str, Any]]
    curves: dict[StageName, list[dict[str, Any]]]
    prompt_rejects: dict[str, int]
    store: StoreFacts | None
    verdict: dict[str, Any] | None
    resolved_config: str = ""
    notes: list[str] = field(default_factory=list)
    curation: dict[str, Any] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    sweeps: list[SweepFacts] = field(default_factory=list)

    def count(self, stage: StageName, name: str) -> int | None:
        """A count of a complete stage."""
        manifest = self.manifests.get(stage)
        return None if manifest is None else manifest.counts.get(name)


def load_facts(paths: RunPaths, config: Config) -> ReportFacts:
    """Read what is there. What can't be read becomes a note: one damaged file costs one section."""
    notes: list[str] = []
    manifests = {}
    for name in STAGE_NAMES:
        manifest = load_manifest(paths.stage_dir(name))
        if manifest is not None:
            manifests[name] = manifest
    results, completions = None, []
    if "evaluate" in manifests:
        try:
            results = load_results(paths.evaluation_results)
            completions = choose_samples(
                load_completions(paths.evaluation_completions), config.evaluation.num_report_samples
            )
        except DataError as error:
            notes.append(str(error))
    store = None
    if "generate" in manifests:
        try:
            store = _load_store_facts(load_store(paths.store))
        except DataError as error:
            notes.append(str(error))
    training: tuple[StageName, ...] = ("sft", "distill")
    return ReportFacts(
        config=config,
        manifests=manifests,
        results=results,
        completions=completions,
        curves={stage: load_curve(paths.training_metrics(stage)) for stage in training},
        prompt_rejects=_count_rejects(paths.prompt_rejects),
        store=store,
        verdict=_load_json(paths.export_verdict) if "export" in manifests else None,
        resolved_config=_load_resolved(paths, config),
        notes=notes,
        curation=_load_json(paths.curate_report) if "curate" in manifests else None,
        outcomes=compare_forecast(paths, manifests),
        sweeps=load_sweeps(paths),
    )


def choose_samples(rows: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """`limit` rows that take turns between the tasks, chosen by hashes and not by how they did."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["prompt_id"].encode("utf-8")).digest()):
        by_task.setdefault(row["task"], []).append(row)
    chosen: list[dict[str, Any]] = []
    turn = 0
    while len(chosen) < min(limit, len(rows)):
        for task in sorted(by_task):
            if turn < len(by_task[task]) and len(chosen) < limit:
                chosen.append(by_task[task][turn])
        turn += 1
    return chosen


def load_curve(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a line that was cut off or isn't an object is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _load_store_facts(store: TeacherStore) -> StoreFacts:
    prompt_tokens: list[int] = []
    completion_tokens: list[int] = []
    masses: list[float] = []
    columns = ("num_prompt_tokens", "num_completion_tokens", "tail_logprob")
    # Partitions are cut by key hash, so the first ones are a random sample.
    for partition in range(store.num_partitions):
        found: list[float] = []
        for table in iter_tables(store, columns=columns, partitions=(partition,)):
            prompt_tokens += table.column("num_prompt_tokens").to_pylist()
            completion_tokens += table.column("num_completion_tokens").to_pylist()
            found += _captured_mass(table)
        if not found:
            for table in iter_tables(
                store, kind="scores", columns=("tail_logprob",), partitions=(partition,)
            ):
                found += _captured_mass(table)
        masses += found
        if len(prompt_tokens) >= _SAMPLED_ROWS:
            break
    return StoreFacts(compute_stats(store), prompt_tokens, completion_tokens, masses)


def _captured_mass(table: pa.Table) -> list[float]:
    tails = table.column("tail_logprob").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return [float(mass) for mass in 1.0 - np.exp(tails.astype(np.float64))]


def _count_rejects(path: Path) -> dict[str, int]:
    try:
        codes = pq.read_table(path, columns=["code"]).column("code").to_pylist()
    except (OSError, pa.ArrowInvalid):
        return {}
    return dict(Counter(codes).most_common())


def _load_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _load_resolved(paths: RunPaths, config: Config) -> str:
    try:
        return paths.resolved_config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return render_config(config)
