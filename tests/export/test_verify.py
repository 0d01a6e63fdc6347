"""Where two completions part, and what counts as a tie."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from raystill.errors import EnvironmentFault
from raystill.export import verify
from raystill.export.verify import VerificationTask, find_difference, run_vllm, strip_eos

TASK = VerificationTask(["p0"], [[5, 6, 7]], 8, [3, 4], "float32", 64, 0.25, 0.9, Path("engine.log"))


@pytest.fixture(scope="module")
def model(small_run_module: ModuleType) -> Any:
    return small_run_module.build_model(4)


def test_the_eos_and_what_follows_is_stripped() -> None:
    assert strip_eos([7, 8, 4, 9], TASK) == [7, 8]
    assert strip_eos([7, 8], TASK) == [7, 8]
    assert strip_eos([3], TASK) == []


def test_equal_completions_have_no_difference(model: Any) -> None:
    assert find_difference(model, "p0", [5, 6, 7], [8, 9], [8, 9], TASK) is None


def test_the_first_difference_has_both_logprobs(model: Any) -> None:
    difference = find_difference(model, "p0", [5, 6, 7], [8, 9, 10], [8, 11], TASK)
    assert difference is not None
    with torch.inference_mode():
        logprobs = model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1].log_softmax(-1)
    assert (difference.position, difference.transformers_token, difference.vllm_token) == (1, 9, 11)
    assert difference.transformers_logprob == pytest.approx(float(logprobs[9]), rel=1e-5)
    assert difference.vllm_logprob == pytest.approx(float(logprobs[11]), rel=1e-5)


def test_a_completion_that_ended_chose_its_eos(model: Any) -> None:
    difference = find_difference(model, "p0", [5, 6, 7], [8, 9], [8], TASK)
    assert difference is not None
    assert difference.position == 1
    assert difference.vllm_token in TASK.eos_ids


def test_a_tie_passes_and_is_reported(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    ours = verify.complete_greedily(model, [5, 6, 7], TASK)
    other = [*strip_eos(ours, TASK)[:-1], 12]
    monkeypatch.setattr(verify, "run_vllm", lambda exported, task: {"version": "0", "completions": [other]})
    monkeypatch.setattr(verify, "TIE_TOLERANCE", {"float32": 100.0})
    proof = verify.verify_export(model, tmp_path, TASK)
    assert proof.verified
    assert (proof.equal, len(proof.ties)) == (0, 1)
    assert "1 part at a tie" in proof.reason
    assert proof.largest_tie == abs(
        (proof.ties[0].transformers_logprob or 0) - (proof.ties[0].vllm_logprob or 0)
    )


def test_what_the_engine_starts_dies_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A child that outlives its parent is in the same process group, and goes too."""
    pid_file = tmp_path / "pid"
    script = tmp_path / "engine"
    script.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {pid_file}\nexit 3\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(EnvironmentFault, match="exit code 3"):
        run_vllm(tmp_path, replace(TASK, log=tmp_path / "logs" / "engine.log"))
    child = int(pid_file.read_text(encoding="utf-8"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
                return  # dead, waiting for its new parent to notice
        except psutil.NoSuchProcess:
            return
        time.sleep(0.1)
    pytest.fail("the child is still alive")


def test_an_engine_that_fails_is_quoted_in_one_line_and_its_log_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, log = tmp_path / "engine", tmp_path / "logs" / "engine.log"
    words = "INFO loading\\nValueError: no room for 64 tokens\\n[rank0] closing"
    script.write_text(f"#!/bin/sh\nprintf '{words}\\n'\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(EnvironmentFault) as caught:
        run_vllm(tmp_path, replace(TASK, log=log))
    problem = caught.value.problems[0]
    assert problem.what.endswith("(exit code 1): ValueError: no room for 64 tokens")
    assert str(log) in problem.where and "closing" in log.read_text(encoding="utf-8")
