"""The gap report: teacher, untrained student, after SFT, after distillation, on the same held-out prompts.

The teacher's row comes from the store, so no teacher is in memory. Too few prompts, missing outputs or a
trained model that writes nothing raise DataError: an evaluation that measured nothing must not look like one.
Shape letter: P prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from raystill.errors import DataError
from raystill.evaluate.agreement import RowAgreement
from raystill.evaluate.calibration import measure_calibration
from raystill.evaluate.intervals import (
    Float64Array,
    NoGapError,
    compute_gap_closed,
    compute_ratio_interval,
    compute_wilson_interval,
)
from raystill.evaluate.results import Estimate, GapClosed, GapMetric, RowKey, RowResult
from raystill.evaluate.tasks import Verdict, score_completion
from raystill.store.records import TeacherRow
from raystill.text.prompt_row import Prompt

_UNKNOWN = "no prompt has a right answer, and there are no teacher's logprobs of the student's tokens"


@dataclass(frozen=True)
class ModelOutputs:
    """What one model did on every prompt; all lists have one entry per prompt, in the same order.

    `agreement` is None for the teacher itself, and has None where a row doesn't fit the model's context.
    """

    key: RowKey
    label: str
    model: str
    parameters: int | None
    completions: list[str]
    num_tokens: list[int]
    finish_reasons: list[str]
    verdicts: list[Verdict]
    agreement: list[RowAgreement | None] | None
    num_without_room: int
    seconds: float


def teacher_outputs(
    prompts: Sequence[Prompt], rows: Sequence[TeacherRow], *, label: str, model: str, parameters: int | None
) -> ModelOutputs:
    """The teacher's row, from its stored completions. `rows` match `prompts` one to one."""
    completions = [row.completion for row in rows]
    return ModelOutputs(
        key="teacher",
        label=label,
        model=model,
        parameters=parameters,
        completions=completions,
        num_tokens=[_num_tokens(row) for row in rows],
        finish_reasons=[row.finish_reason for row in rows],
        verdicts=score_all(completions, prompts),
        agreement=None,
        num_without_room=0,
        seconds=float(sum(row.seconds for row in rows)),
    )


def _num_tokens(row: TeacherRow) -> int:
    """Of the stored ids; of what the endpoint has counted where there is only text."""
    if len(row.completion_token_ids) or row.usage is None:
        return len(row.completion_token_ids)
    return int(json.loads(row.usage).get("completion_tokens") or 0)


def score_all(completions: Sequence[str], prompts: Sequence[Prompt]) -> list[Verdict]:
    """One verdict per prompt. Raises DataError if a model left prompts without an output."""
    if len(completions) != len(prompts):
        raise DataError(f"{len(completions)} completions for {len(prompts)} prompts")
    return [
        score_completion(completion, prompt.reference, prompt.task)
        for completion, prompt in zip(completions, prompts, strict=True)
    ]


def validate_outputs(outputs: ModelOutputs, *, min_samples: int) -> None:
    """Refuse what can't count as an evaluation. An untrained model may well write nothing; no other may.

    Raises DataError naming the model.
    """
    n = len(outputs.completions)
    if n < min_samples:
        raise DataError(
            f"{n} held-out prompts have a teacher output, which is too few to measure anything",
            where="evaluation.min_samples",
            fix=f"hold out at least {min_samples} prompts (prompts.eval_size), or lower the minimum",
        )
    if outputs.key != "untrained" and all(verdict.empty for verdict in outputs.verdicts):
        raise DataError(
            f"{outputs.label} wrote nothing on all {n} held-out prompts: {_why_empty(outputs)}",
            where=outputs.model,
            fix="look at its training curves, and at the EOS token of its tokenizer",
        )


def _why_empty(outputs: ModelOutputs) -> str:
    """What a model did instead of writing."""
    if outputs.num_without_room == len(outputs.completions):
        return "none of them leaves room for an answer in its context"
    if set(outputs.finish_reasons) == {"stop"} and max(outputs.num_tokens) <= 1:
        return "it ended every answer at once"
    return f"{sum(outputs.num_tokens)} tokens, none of which is more than white space or a special token"


def build_row(outputs: ModelOutputs, prompts: Sequence[Prompt]) -> RowResult:
    """Summarise one model. Metrics that no prompt or no signal can answer are None."""
    by_task = {
        task: _rate(outputs, lambda verdict: verdict.correct, prompts, task)
        for task in sorted({prompt.task for prompt in prompts})
    }
    perplexity = _token_mean(outputs.agreement, lambda row: row.nll_sum)
    return RowResult(
        key=outputs.key,
        label=outputs.label,
        model=outputs.model,
        parameters=outputs.parameters,
        num_samples=len(outputs.completions),
        exact_match=_rate(outputs, lambda verdict: verdict.correct),
        exact_match_by_task={task: estimate for task, estimate in by_task.items() if estimate is not None},
        tool_json_valid=_rate(outputs, lambda verdict: verdict.json_valid),
        tool_selected=_rate(outputs, lambda verdict: verdict.tool_selected),
        tool_arguments=_rate(outputs, lambda verdict: verdict.arguments_equal),
        kl_to_teacher=_token_mean(outputs.agreement, lambda row: row.kl_sum),
        top1_agreement=_token_mean(outputs.agreement, lambda row: row.top1_matches),
        perplexity=_exponential(perplexity),
        token_accuracy=_token_mean(
            outputs.agreement, lambda row: None if row.bins is None else sum(row.bins.num_right)
        ),
        calibration_error=_calibration_error(outputs.agreement),
        mean_completion_tokens=float(np.mean(outputs.num_tokens)),
        num_empty=sum(verdict.empty for verdict in outputs.verdicts),
        num_cut_off=sum(reason == "length" for reason in outputs.finish_reasons),
        num_without_room=outputs.num_without_room,
        seconds=round(outputs.seconds, 3),
    )


def build_gaps(outputs: Sequence[ModelOutputs]) -> list[GapClosed]:
    """The gap that every trained model closed: in exact match, and in KL to the teacher (whose own is 0).

    Each of them has one or the other, be it only the reason why nothing can be said.
    """
    by_key = {entry.key: entry for entry in outputs}
    teacher, before = by_key.get("teacher"), by_key.get("untrained")
    gaps: list[GapClosed] = []
    for key in ("sft", "distill"):
        after = by_key.get(key)
        if teacher is None or before is None or after is None:
            continue
        judged = [i for i, verdict in enumerate(teacher.verdicts) if verdict.correct is not None]
        if judged:
            scores = [_correct(entry, judged) for entry in (before, after, teacher)]
            gaps.append(_gap(key, "exact_match", scores, None))
        by_distance = _kl_gap(key, before, after)
        if not judged and not by_distance:
            gaps.append(GapClosed(row=key, metric="kl_to_teacher", estimate=None, reason=_UNKNOWN))
        gaps += by_distance
    return gaps


def choose_primary_metric(teacher: RowResult) -> GapMetric:
    """Exact match where any prompt has a right answer, else KL to the teacher."""
    return "exact_match" if teacher.exact_match is not None else "kl_to_teacher"


def count_tasks(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Prompts per task kind."""
    return dict(sorted(Counter(prompt.task for prompt in prompts).items()))


def _rate(
    outputs: ModelOutputs,
    question: Callable[[Verdict], bool | None],
    prompts: Sequence[Prompt] | None = None,
    task: str = "",
) -> Estimate | None:
    answers = [question(verdict) for verdict in outputs.verdicts]
    if prompts is not None:
        answers = [answer for answer, prompt in zip(answers, prompts, strict=True) if prompt.task == task]
    known = [answer for answer in answers if answer is not None]
    if not known:
        return None
    return Estimate.from_interval(compute_wilson_interval(sum(known), len(known)))


def _token_mean(
    agreement: list[RowAgreement | None] | None, quantity: Callable[[RowAgreement], float | None]
) -> Estimate | None:
    pairs = [
        (float(value), float(row.num_tokens))
        for row in agreement or []
        if row is not None and (value := quantity(row)) is not None
    ]
    if not pairs:
        return None
    table = np.asarray(pairs, dtype=np.float64)
    return Estimate.from_interval(compute_ratio_interval(table[:, 0], table[:, 1]))


def _calibration_error(agreement: list[RowAgreement | None] | None) -> Estimate | None:
    bins = [row.bins for row in agreement or [] if row is not None and row.bins is not None]
    return Estimate.from_interval(measure_calibration(bins)) if bins else None


def _exponential(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    low, high = (None if bound is None else exp(min(bound, 700.0)) for bound in (estimate.low, estimate.high))
    return Estimate(value=exp(min(estimate.value, 700.0)), low=low, high=high, n=estimate.n)


def _correct(outputs: ModelOutputs, judged: list[int]) -> Float64Array:
    return np.asarray([bool(outputs.verdicts[i].correct) for i in judged], dtype=np.float64)


def _kl_gap(key: RowKey, before: ModelOutputs, after: ModelOutputs) -> list[GapClosed]:
    shared = [
        (first.kl_sum / first.num_tokens, second.kl_sum / second.num_tokens, float(first.num_tokens))
        for first, second in zip(before.agreement or [], after.agreement or [], strict=True)
        if first is not None and second is not None and first.kl_sum is not None and second.kl_sum is not None
    ]
    if not shared:
        return []
    table = np.asarray(shared, dtype=np.float64)
    scores = [-table[:, 0], -table[:, 1], np.zeros(len(table))]
    return [_gap(key, "kl_to_teacher", scores, table[:, 2])]


def _gap(
    key: RowKey, metric: GapMetric, scores: list[Float64Array], weights: Float64Array | None
) -> GapClosed:
    try:
        before_P, after_P, teacher_P = scores
        interval = compute_gap_closed(before_P, after_P, teacher_P, weights)
    except NoGapError as error:
        return GapClosed(row=key, metric=metric, estimate=None, reason=str(error))
    return GapClosed(row=key, metric=metric, estimate=Estimate.from_interval(interval))
