"""The identity run: 0 for a teacher that is itself, and every way of being a token off is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystill.cluster import check_identity as module
from raystill.cluster.check_data import check_data
from raystill.cluster.check_identity import TOLERANCE, check_identity, run_identity
from raystill.cluster.findings import Findings
from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.store.records import TopKSignal

DEMO = Path(__file__).resolve().parents[2] / "platform" / "raystill" / "demo"


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.model_validate(
        {
            "device": {"type": "cpu"},
            "prompts": {"sources": [{"path": str(DEMO / "data" / "prompts.jsonl")}]},
            "teacher": {"open": {"model": {"name": str(DEMO / "teacher")}}},
            "student": {"hidden_size": 32},
            "train": {"distillation": {}},
        }
    )


def test_a_teacher_has_nothing_to_learn_from_itself(config: Config) -> None:
    findings = Findings()
    prompts = check_data(config, findings)
    found = run_identity(config, prompts)
    assert abs(found.nats) < TOLERANCE / 2
    assert found.num_rows == 8 and found.num_tokens > 80 and found.num_logprobs == 20


def test_signals_that_are_a_token_off_are_found(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = Findings()
    prompts = check_data(config, findings)
    score = module._score

    async def score_and_shift(*arguments: Any) -> list[TopKSignal]:
        return [shifted(signal) for signal in await score(*arguments)]

    monkeypatch.setattr(module, "_score", score_and_shift)
    monkeypatch.setattr("raystill.store.writer.check_rows", lambda rows: None)  # which would see it as well
    with pytest.raises(DataError, match="nats per token away from its own stored signals") as caught:
        check_identity(config, prompts, findings)
    assert caught.value.problems[0].fix


def shifted(signal: TopKSignal) -> TopKSignal:
    return replace(
        signal,
        topk_ids_TK=np.roll(signal.topk_ids_TK, 1, axis=0),
        topk_logprobs_TK=np.roll(signal.topk_logprobs_TK, 1, axis=0),
        tail_logprob_T=np.roll(signal.tail_logprob_T, 1),
    )


def areas(findings: Findings) -> Sequence[tuple[str, str]]:
    return [(finding.area, finding.what) for finding in findings.all]


def test_what_is_too_large_or_elsewhere_is_said_to_be_left_out(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = check_data(config, Findings())
    for name, number, why in (("large", 10**9, "1,000,000,000 parameters"), ("hub", None, "no local")):
        findings = Findings()
        monkeypatch.setattr(module, "count_local_parameters", lambda _, number=number: number)
        check_identity(config, prompts, findings)
        assert len(findings.all) == 1 and why in findings.all[0].what, (name, areas(findings))
    findings = Findings()
    train = config.train.model_copy(update={"distillation": None})
    check_identity(config.model_copy(update={"train": train}), prompts, findings)
    assert findings.all == []
