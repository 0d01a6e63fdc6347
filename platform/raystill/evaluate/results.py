"""The evaluation's results as plain data: what `results.json` holds, for the table and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raystill.errors import DataError
from raystill.evaluate.intervals import Interval

SCHEMA_VERSION = 1

RowKey = Literal["teacher", "untrained", "sft", "distill"]
GapMetric = Literal["exact_match", "kl_to_teacher"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Record):
    """A value with its 95 % interval from `n` prompts; a bound is None where it is unbounded."""

    value: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def from_interval(cls, interval: Interval) -> Estimate:
        """JSON has no infinity, so infinite bounds become None."""
        low, high = (bound if abs(bound) != float("inf") else None for bound in (interval.low, interval.high))
        return cls(value=interval.value, low=low, high=high, n=interval.n)


class RowResult(_Record):
    """One model of the gap table. A metric that the data can't answer is None, never 0.

    Rates are shares of prompts; `kl_to_teacher` is in nats per token of the teacher's completions, on which
    `token_accuracy` is how often the favourite token is the one that stands there, and `calibration_error`
    how far its probability is from that (`calibration`).
    """

    key: RowKey
    label: str
    model: str
    parameters: int | None
    num_samples: int
    exact_match: Estimate | None = None
    exact_match_by_task: dict[str, Estimate] = {}
    tool_json_valid: Estimate | None = None
    tool_selected: Estimate | None = None
    tool_arguments: Estimate | None = None
    kl_to_teacher: Estimate | None = None
    top1_agreement: Estimate | None = None
    perplexity: Estimate | None = None
    token_accuracy: Estimate | None = None
    calibration_error: Estimate | None = None
    mean_completion_tokens: float = 0.0
    num_empty: int = 0
    num_cut_off: int = 0
    num_without_room: int = 0
    seconds: float = 0.0


class GapClosed(_Record):
    """The share of the gap that one trained row closed, or why there is none to speak of."""

    row: RowKey
    metric: GapMetric
    estimate: Estimate | None
    reason: str = ""


class Results(_Record):
    """Everything that one evaluation measured. `rows` go from the teacher to the final student."""

    schema_version: int = SCHEMA_VERSION
    run: str
    primary_metric: GapMetric
    num_prompts: int
    num_prompts_without_teacher_output: int
    num_prompts_by_task: dict[str, int]
    rows: list[RowResult]
    gap_closed: list[GapClosed]
    settings: dict[str, Any]

    def row(self, key: RowKey) -> RowResult | None:
        """The row of one model, where it was evaluated."""
        return next((row for row in self.rows if row.key == key), None)

    def gap_of(self, key: RowKey, metric: GapMetric | None = None) -> GapClosed | None:
        """What a row closed of the gap in `metric` (default: the primary one)."""
        wanted = metric or self.primary_metric
        return next((gap for gap in self.gap_closed if gap.row == key and gap.metric == wanted), None)


def load_results(path: Path) -> Results:
    """Read `results.json`. Raises DataError if it isn't there or isn't one of ours."""
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(
            "the evaluation's results can't be read", where=str(path), fix="raystill evaluate --fresh"
        ) from error
