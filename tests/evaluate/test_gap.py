"""The gap report from made-up outputs: what counts, what is refused, and what is n/a."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from raystill.errors import DataError
from raystill.evaluate.agreement import RowAgreement
from raystill.evaluate.gap import (
    ModelOutputs,
    build_gaps,
    build_row,
    choose_primary_metric,
    count_tasks,
    score_all,
    validate_outputs,
)
from raystill.evaluate.results import RowKey
from raystill.text.prompt_row import Prompt, TaskKind

CALL = '{"name": "f", "arguments": {"x": 1}}'


def make_prompts(tasks: Sequence[TaskKind]) -> list[Prompt]:
    references = {"exact": "7", "tool_call": CALL, "text": None}
    return [
        Prompt(f"p{i}", "s", "eval", [{"role": "user", "content": "?"}], task, references[task], 3)
        for i, task in enumerate(tasks)
    ]


def make_outputs(
    key: RowKey, prompts: list[Prompt], completions: list[str], kl: float | None = None
) -> ModelOutputs:
    agreement = [RowAgreement(4, 4.0, None if kl is None else 4 * kl, 2) for _ in prompts]
    return ModelOutputs(
        key=key,
        label=key.title(),
        model=key,
        parameters=10,
        completions=completions,
        num_tokens=[len(completion) for completion in completions],
        finish_reasons=["stop"] * len(prompts),
        verdicts=score_all(completions, prompts),
        agreement=None if key == "teacher" else list(agreement),
        num_without_room=0,
        seconds=1.0,
    )


def test_rates_count_only_the_prompts_that_ask() -> None:
    prompts = make_prompts(["exact", "exact", "tool_call", "tool_call", "text"])
    outputs = make_outputs("sft", prompts, ["7", "8", CALL, '{"name": "g", "arguments": {"x": 1}}', "hello"])
    row = build_row(outputs, prompts)
    assert row.exact_match is not None
    assert (row.exact_match.value, row.exact_match.n) == (0.5, 4)
    assert {task: (e.value, e.n) for task, e in row.exact_match_by_task.items()} == {
        "exact": (0.5, 2),
        "tool_call": (0.5, 2),
    }
    assert row.tool_json_valid is not None
    assert (row.tool_json_valid.value, row.tool_json_valid.n) == (1.0, 2)
    assert row.tool_selected is not None
    assert row.tool_selected.value == 0.5
    assert row.tool_arguments is not None
    assert row.tool_arguments.value == 1.0


def test_text_only_has_no_exact_match_and_falls_back_to_kl() -> None:
    prompts = make_prompts(["text"] * 12)
    outputs = [
        make_outputs("teacher", prompts, ["a"] * 12),
        make_outputs("untrained", prompts, ["b"] * 12, kl=2.0),
        make_outputs("distill", prompts, ["a"] * 12, kl=0.5),
    ]
    rows = [build_row(entry, prompts) for entry in outputs]
    assert all(row.exact_match is None and row.tool_json_valid is None for row in rows)
    assert choose_primary_metric(rows[0]) == "kl_to_teacher"
    (gap,) = build_gaps(outputs)
    assert (gap.row, gap.metric) == ("distill", "kl_to_teacher")
    assert gap.estimate is not None
    assert gap.estimate.value == pytest.approx(0.75)
    assert rows[2].kl_to_teacher is not None
    assert rows[2].kl_to_teacher.value == pytest.approx(0.5)
    assert rows[2].perplexity is not None
    assert rows[2].perplexity.value == pytest.approx(2.718281828)


def test_gap_in_exact_match() -> None:
    prompts = make_prompts(["exact"] * 20)
    right, wrong = ["7"], ["8"]
    outputs = [
        make_outputs("teacher", prompts, right * 20),
        make_outputs("untrained", prompts, wrong * 20, kl=1.0),
        make_outputs("sft", prompts, right * 5 + wrong * 15, kl=0.5),
        make_outputs("distill", prompts, right * 18 + wrong * 2, kl=0.1),
    ]
    closed = {(gap.row, gap.metric): gap.estimate for gap in build_gaps(outputs)}
    assert closed["sft", "exact_match"].value == pytest.approx(0.25)  # type: ignore[union-attr]
    assert closed["distill", "exact_match"].value == pytest.approx(0.9)  # type: ignore[union-attr]
    assert closed["distill", "kl_to_teacher"].value == pytest.approx(0.9)  # type: ignore[union-attr]


def test_without_a_gap_there_is_a_reason_instead_of_a_number() -> None:
    prompts = make_prompts(["exact"] * 12)
    outputs = [make_outputs(key, prompts, ["8"] * 12) for key in ("teacher", "untrained", "distill")]
    (gap,) = build_gaps(outputs)
    assert gap.estimate is None
    assert "no better" in gap.reason


def test_with_neither_right_answers_nor_logprobs_the_reason_is_told() -> None:
    prompts = make_prompts(["text"] * 12)
    outputs = [make_outputs(key, prompts, ["hello"] * 12) for key in ("teacher", "untrained", "sft")]
    (gap,) = build_gaps(outputs)
    assert (gap.row, gap.metric, gap.estimate) == ("sft", "kl_to_teacher", None)
    assert "no prompt has a right answer" in gap.reason


def test_a_model_that_writes_nothing_fails() -> None:
    prompts = make_prompts(["exact"] * 12)
    for key in ("teacher", "sft", "distill"):
        with pytest.raises(DataError, match=r"wrote nothing on all 12.*at once"):
            validate_outputs(make_outputs(key, prompts, [" "] * 12), min_samples=10)  # type: ignore[arg-type]
    silent = make_outputs("untrained", prompts, [""] * 12)
    validate_outputs(silent, min_samples=10)
    row = build_row(silent, prompts)
    assert row.exact_match is not None
    assert (row.exact_match.value, row.num_empty) == (0.0, 12)


def test_too_few_samples_fail() -> None:
    prompts = make_prompts(["exact"] * 9)
    with pytest.raises(DataError, match=r"9 held-out prompts .* too few"):
        validate_outputs(make_outputs("teacher", prompts, ["7"] * 9), min_samples=10)


def test_missing_outputs_fail() -> None:
    prompts = make_prompts(["exact"] * 3)
    with pytest.raises(DataError, match="2 completions for 3 prompts"):
        score_all(["7", "7"], prompts)


def test_rows_that_did_not_fit_are_left_out_of_token_means() -> None:
    prompts = make_prompts(["exact"] * 2)
    outputs = make_outputs("sft", prompts, ["7", "7"], kl=1.0)
    outputs = replace(outputs, agreement=[None, RowAgreement(2, 2.0, 6.0, 1)])
    row = build_row(outputs, prompts)
    assert row.kl_to_teacher is not None
    assert (row.kl_to_teacher.value, row.kl_to_teacher.n) == (3.0, 1)


def test_tasks_are_counted() -> None:
    assert count_tasks(make_prompts(["text", "exact", "text"])) == {"exact": 1, "text": 2}
