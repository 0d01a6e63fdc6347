"""From the arms' records to tables with intervals, and to verdicts on what helps.

Every value is the mean over the seeds. Intervals are 95 %, over prompts, for these seeds; differences are
paired, prompt by prompt within a seed. A claim holds where its interval lies on the right side of 0 and every
seed agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import fmean

import numpy as np

from raystill.bench.quality_arms import ARMS, BY_NAME, CLAIMS, ArmName, Claim, Task
from raystill.bench.quality_records import TEACHER, ArmRecord
from raystill.bench.result import BenchRow, BenchTable
from raystill.evaluate.intervals import Float64Array, Interval, compute_ratio_interval
from raystill.evaluate.results import Estimate

Records = Mapping[tuple[Task, int, ArmName], ArmRecord]
_METRICS = ("exact_match", "token_accuracy", "kl_to_teacher", "calibration_error")
_HEADINGS = ("exact match %", "tokens right %", "KL to teacher", "calibration error %")
_SCALES = (100.0, 100.0, 1.0, 100.0)


def mean_of_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, with half-widths added in squares."""
    values = [entry.value for entry in estimates]
    value, count = fmean(values), len(values)
    lows = [entry.value - (entry.value if entry.low is None else entry.low) for entry in estimates]
    highs = [(entry.value if entry.high is None else entry.high) - entry.value for entry in estimates]
    below, above = (sqrt(sum(width**2 for width in widths)) / count for widths in (lows, highs))
    return Estimate(value=value, low=value - below, high=value + above, n=sum(e.n for e in estimates))


def arm_tables(records: Records) -> list[BenchTable]:
    """One table per task: every arm that all of its seeds have."""
    return [_arm_table(task, records) for task in sorted({task for task, _, _ in records})]


def _arm_table(task: Task, records: Records) -> BenchTable:
    rows: list[tuple[str | float | None, ...]] = []
    names = {TEACHER: "teacher"} | {arm.name: arm.label for arm in ARMS}
    for name, label in names.items():
        mine = [record for (t, _, arm), record in sorted(records.items()) if t == task and arm == name]
        if not mine:
            continue
        cells = [_cell(mine, metric, scale) for metric, scale in zip(_METRICS, _SCALES, strict=True)]
        costs = (
            fmean(record.cpu_seconds for record in mine),
            fmean(record.bytes_per_token for record in mine),
        )
        rows.append((label, *cells, mine[0].steps, *(costs if name != TEACHER else (None, None))))
    seeds = len({seed for t, seed, _ in records if t == task})
    note = (
        f"Means over {seeds} seed{'s' if seeds > 1 else ''} with 95 % intervals over prompts; in brackets "
        "the seeds' own values. KL in nats per token; CPU seconds; bytes of signals per token in "
        "the store."
    )
    return BenchTable(f"Arms: {task}", note, ("arm", *_HEADINGS, "steps", "CPU s", "bytes"), tuple(rows))


def _cell(mine: Sequence[ArmRecord], metric: str, scale: float) -> str | None:
    estimates = [getattr(record.row, metric) for record in mine]
    if any(estimate is None for estimate in estimates):
        return None
    mean = mean_of_seeds(estimates)
    assert mean.low is not None and mean.high is not None
    own = ", ".join(f"{scale * estimate.value:.3g}" for estimate in estimates)
    return f"{scale * mean.value:.3g}, {scale * mean.low:.3g} to {scale * mean.high:.3g} ({own})"


def claim_rows(records: Records) -> list[BenchRow]:
    """The claims whose two arms were run, per task and metric."""
    rows = []
    for task in sorted({task for task, _, _ in records}):
        for claim in CLAIMS:
            pairs = [
                (records[task, seed, claim.better], records[task, seed, claim.than])
                for seed in sorted({seed for t, seed, _ in records if t == task})
                if (task, seed, claim.better) in records and (task, seed, claim.than) in records
            ]
            if pairs:
                rows += _verdicts(task, claim, pairs)
    return rows


def _verdicts(task: Task, claim: Claim, pairs: list[tuple[ArmRecord, ArmRecord]]) -> list[BenchRow]:
    rows = [_kl_verdict(task, claim, pairs), _calibration_verdict(task, claim, pairs)]
    if pairs[0][0].correct is not None:
        rows.insert(0, _match_verdict(task, claim, pairs))
    return rows


def _match_verdict(task: Task, claim: Claim, pairs: list[tuple[ArmRecord, ArmRecord]]) -> BenchRow:
    def gained(ours: ArmRecord, peer: ArmRecord) -> tuple[Float64Array, Float64Array]:
        won = np.asarray(ours.correct, np.float64) - np.asarray(peer.correct, np.float64)
        return won, np.ones(len(won))

    return _paired(task, claim, "exact match", "exact_match", pairs, gained)


def _kl_verdict(task: Task, claim: Claim, pairs: list[tuple[ArmRecord, ArmRecord]]) -> BenchRow:
    def gained(ours: ArmRecord, peer: ArmRecord) -> tuple[Float64Array, Float64Array]:
        return np.asarray(peer.kl_sums) - np.asarray(ours.kl_sums), np.asarray(ours.tokens, np.float64)

    return _paired(task, claim, "KL to teacher", "kl_to_teacher", pairs, gained)


def _calibration_verdict(task: Task, claim: Claim, pairs: list[tuple[ArmRecord, ArmRecord]]) -> BenchRow:
    """Unpaired: the errors of two arms are not sums over prompts."""
    sides = [[pair[index].row.calibration_error for pair in pairs] for index in (0, 1)]
    ours, peer = (mean_of_seeds([entry for entry in side if entry is not None]) for side in sides)
    assert ours.high is not None and peer.low is not None and ours.low is not None and peer.high is not None
    gain = peer.value - ours.value
    half = sqrt((ours.high - ours.value) ** 2 + (peer.value - peer.low) ** 2)
    agree = all(a is not None and b is not None and a.value < b.value for a, b in zip(*sides, strict=True))
    return _row(task, claim, "calibration error", ours.value, peer.value, gain > half and agree)


def _paired(
    task: Task,
    claim: Claim,
    metric: str,
    field: str,
    pairs: list[tuple[ArmRecord, ArmRecord]],
    gained: Callable[[ArmRecord, ArmRecord], tuple[Float64Array, Float64Array]],
) -> BenchRow:
    gains: list[Interval] = [compute_ratio_interval(*gained(ours, peer)) for ours, peer in pairs]
    mean = mean_of_seeds([Estimate.from_interval(gain) for gain in gains])
    assert mean.low is not None
    values = [fmean(getattr(pair[index].row, field).value for pair in pairs) for index in (0, 1)]
    return _row(
        task, claim, metric, values[0], values[1], mean.low > 0 and all(gain.value > 0 for gain in gains)
    )


def _row(task: Task, claim: Claim, metric: str, ours: float, peer: float, met: bool) -> BenchRow:
    return BenchRow(
        f"{task}: {BY_NAME[claim.better].label}",
        metric,
        ours,
        peer,
        BY_NAME[claim.than].label,
        ours / peer if peer else None,
        "better, every seed",
        met,
    )
