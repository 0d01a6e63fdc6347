"""Does distillation close the gap, and is it distillation that does? The demo over three seeds with controls.

Every seed draws another split, other samples of the teacher, other first weights and another data order. The
controls train from the same store for as many steps as SFT and KD together: SFT alone, and KD alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.bench.result import BenchRow, bench_result
from raystill.config.load import load_config
from raystill.evaluate.intervals import Interval, compute_wilson_interval
from raystill.evaluate.results import Results, RowKey, load_results
from raystill.pipeline import run_pipeline
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths

SEEDS = (0, 1, 2)
DEMO_CONFIG = Path("configs/demo.yaml")
_QUICK = (
    "prompts.sources=[{path: platform/raystill/demo/data/prompts.jsonl, limit: 300}]",
    "prompts.eval_size=100",
    "train.sft.steps=20",
    "train.distillation.steps=20",
    "export.verify_prompts=0",
)


@dataclass(frozen=True)
class Controls:
    """Training alone for as many steps as SFT and KD have together."""

    sft: Interval
    kd: Interval


@dataclass(frozen=True)
class SeedResult:
    """What one seed measured: the demo's own table, and the controls where they were run."""

    seed: int
    demo: Results
    controls: Controls | None


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Run the demo per seed, and its controls. `quick`: one seed of a few steps and no controls, which shows
    the shape, not the claim."""
    with tempfile.TemporaryDirectory(prefix="raystill-gap-") as scratch:
        common = [f"run.dir={scratch}", *(_QUICK if quick else ())]
        seeds = [_run_seed(seed, common, quick) for seed in (SEEDS[:1] if quick else SEEDS)]
    rows = [row for seed in seeds for row in _seed_rows(seed)]
    return bench_result("gap", rows + (_pooled_rows(seeds) if len(seeds) > 1 else []))


def _run_seed(seed: int, common: Sequence[str], quick: bool) -> SeedResult:
    seeded = [*common, f"run.seed={seed}", f"prompts.split_seed={seed}", f"run.name=seed-{seed}"]
    demo, paths = _run(seeded)
    return SeedResult(seed, demo, None if quick else _run_controls(seed, seeded, paths))


def _run_controls(seed: int, seeded: Sequence[str], demo: RunPaths) -> Controls:
    steps = sum(_steps(demo, stage) for stage in ("sft", "distill"))
    shared = [*seeded, f"teacher.store.path={demo.store}", "export.verify_prompts=0"]
    sft, _ = _run(
        [*shared, f"run.name=seed-{seed}-sft", f"train.sft.steps={steps}", "train.distillation=null"]
    )
    kd, _ = _run(
        [
            *shared,
            f"run.name=seed-{seed}-kd",
            f"train.distillation.steps={steps}",
            "train.distillation.init=student",
            "train.sft=null",
        ]
    )
    return Controls(_rate(sft, "sft"), _rate(kd, "distill"))


def _run(overrides: Sequence[str]) -> tuple[Results, RunPaths]:
    paths = run_pipeline(load_config([DEMO_CONFIG], overrides)).paths
    return load_results(paths.evaluation_results), paths


def _steps(paths: RunPaths, stage: RowKey) -> int:
    manifest = load_manifest(paths.stage_dir("sft" if stage == "sft" else "distill"))
    assert manifest is not None
    return manifest.counts["steps"]


def _seed_rows(result: SeedResult) -> list[BenchRow]:
    case = f"seed {result.seed}"
    rates = {key: _rate(result.demo, key) for key in ("teacher", "untrained", "sft", "distill")}
    gap = result.demo.gap_of("distill", "exact_match")
    closed = gap.estimate.value if gap and gap.estimate else 0.0
    rows = [
        _at_least(case, "teacher exact match", rates["teacher"].value, 0.95),
        _above(f"{case}: SFT only", rates["sft"], rates["untrained"], "untrained"),
        _above(f"{case}: KD", rates["distill"], rates["sft"], "SFT only"),
        _at_least(case, "gap closed by KD", closed, 0.80),
    ]
    return rows + (_control_rows(case, rates["distill"], result.controls) if result.controls else [])


def _pooled_rows(seeds: Sequence[SeedResult]) -> list[BenchRow]:
    case = f"{len(seeds)} seeds pooled"
    teacher, untrained, sft, kd = (
        _pool([_rate(seed.demo, key) for seed in seeds]) for key in ("teacher", "untrained", "sft", "distill")
    )
    closed = (kd.value - untrained.value) / (teacher.value - untrained.value)
    rows = [
        _at_least(case, "teacher exact match", teacher.value, 0.95),
        _above(f"{case}: SFT only", sft, untrained, "untrained"),
        _above(f"{case}: KD", kd, sft, "SFT only"),
        _at_least(case, "gap closed by KD", closed, 0.80),
    ]
    controls = [seed.controls for seed in seeds if seed.controls is not None]
    if not controls:
        return rows
    pooled = Controls(_pool([found.sft for found in controls]), _pool([found.kd for found in controls]))
    return rows + _control_rows(case, kd, pooled)


def _control_rows(case: str, kd: Interval, controls: Controls) -> list[BenchRow]:
    return [
        _above(f"{case}: KD, control", kd, controls.sft, "SFT, equal steps"),
        _above(f"{case}: KD alone, control", controls.kd, controls.sft, "SFT, equal steps"),
    ]


def _rate(results: Results, key: RowKey) -> Interval:
    row = results.row(key)
    assert row is not None and row.exact_match is not None
    return compute_wilson_interval(round(row.exact_match.value * row.exact_match.n), row.exact_match.n)


def _pool(rates: Sequence[Interval]) -> Interval:
    return compute_wilson_interval(sum(round(rate.value * rate.n) for rate in rates), sum(r.n for r in rates))


def _at_least(case: str, metric: str, value: float, goal: float) -> BenchRow:
    return BenchRow(case, metric, value, None, "", None, f">= {goal:.2f}", value >= goal)


def _above(case: str, ours: Interval, peer: Interval, peer_name: str) -> BenchRow:
    """Ours is better where the 95 % intervals don't even touch."""
    ratio = ours.value / peer.value if peer.value > 0 else None
    return BenchRow(
        case, "exact match", ours.value, peer.value, peer_name, ratio, "intervals apart", ours.low > peer.high
    )
