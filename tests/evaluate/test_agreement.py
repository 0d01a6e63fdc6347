"""Agreement against a naive float64 computation, row by row and without padding."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raystill.errors import DataError
from raystill.evaluate.agreement import measure_agreement
from raystill.store.records import TeacherRow


@pytest.fixture(scope="module")
def run(small_run_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_run_module.build_small_run(tmp_path_factory.mktemp("agreement"), num_prompts=9)


@pytest.fixture(scope="module")
def student(small_run_module: ModuleType) -> Any:
    return small_run_module.build_model(9)


def naive(model: Any, row: TeacherRow) -> tuple[float, float, int]:
    """KL, NLL and top-1 matches of one row in float64, straight from the definitions."""
    signal = row.signal
    assert signal is not None
    ids = torch.tensor([[*row.prompt_token_ids.tolist(), *row.completion_token_ids.tolist()]])
    with torch.inference_mode():
        q_TV = model(ids).logits[0].double().softmax(-1).numpy()[len(row.prompt_token_ids) - 1 : -1]
    kl = nll = 0.0
    matches = 0
    for t, token_id in enumerate(row.completion_token_ids):
        p_K = np.exp(signal.topk_logprobs_TK[t].astype(np.float64))
        p_tail = float(np.exp(np.float64(signal.tail_logprob_T[t])))
        total = p_K.sum() + p_tail
        q_K = q_TV[t][signal.topk_ids_TK[t]]
        rest = np.delete(q_TV[t], signal.topk_ids_TK[t]).sum()
        kl += float(
            (p_K / total * np.log(p_K / total / q_K)).sum() + p_tail / total * np.log(p_tail / total / rest)
        )
        nll -= float(np.log(q_TV[t][token_id]))
        matches += int(q_TV[t].argmax() == signal.topk_ids_TK[t][0])
    return kl, nll, matches


def test_equals_the_definition_in_float64(run: Any, student: Any) -> None:
    measured = measure_agreement(student, run.rows, pad_id=0, context=256)
    for row, agreement in zip(run.rows, measured, strict=True):
        assert agreement is not None
        kl, nll, matches = naive(student, row)
        assert agreement.num_tokens == len(row.completion_token_ids)
        assert agreement.kl_sum == pytest.approx(kl, rel=1e-4)
        assert agreement.nll_sum == pytest.approx(nll, rel=1e-4)
        assert agreement.top1_matches == matches
        assert agreement.bins is not None
        assert sum(agreement.bins.counts) == agreement.num_tokens


def test_the_teacher_agrees_with_itself(run: Any) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(run.paths.model("distill"), dtype=torch.float32)
    for agreement in measure_agreement(teacher, run.rows, pad_id=0, context=256):
        assert agreement is not None
        assert agreement.kl_sum is not None
        assert -1e-6 <= agreement.kl_sum / agreement.num_tokens < 1e-3
        assert agreement.top1_matches == agreement.num_tokens


def test_small_batches_change_nothing(run: Any, student: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure_agreement(student, run.rows, pad_id=0, context=256)
    monkeypatch.setattr("raystill.evaluate.agreement._LOGITS_BYTES", 1)
    single = measure_agreement(student, run.rows, pad_id=0, context=256)
    for one, other in zip(whole, single, strict=True):
        assert one is not None
        assert other is not None
        assert one.kl_sum == pytest.approx(other.kl_sum, rel=1e-4)


def test_rows_without_signal_still_have_a_likelihood(run: Any, student: Any) -> None:
    (agreement,) = measure_agreement(student, [replace(run.rows[0], signal=None)], pad_id=0, context=256)
    assert agreement is not None
    assert agreement.kl_sum is None
    assert agreement.nll_sum > 0


def test_rows_that_do_not_fit_are_none(run: Any, student: Any) -> None:
    assert measure_agreement(student, run.rows[:2], pad_id=0, context=10) == [None, None]


def test_tokens_outside_the_vocabulary_are_refused(run: Any, small_run_module: ModuleType) -> None:
    with pytest.raises(DataError, match="outside the student's vocabulary"):
        measure_agreement(small_run_module.build_model(1, 64), run.rows[:1], pad_id=0, context=256)


def test_a_broken_model_is_refused(run: Any, small_run_module: ModuleType) -> None:
    broken = small_run_module.build_model(9)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("inf")
    with pytest.raises(DataError, match="not finite"):
        measure_agreement(broken, run.rows[:1], pad_id=0, context=256)
