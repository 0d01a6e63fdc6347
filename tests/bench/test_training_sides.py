"""Every side of the training benchmarks runs its steps, here on models of a few thousand weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from raystill.bench import training_models
from raystill.bench.training_models import Shape
from raystill.bench.training_sides import Spec, run_minimal, run_ours

TINY = Shape(128, 32, 48, 2, 4, 2)


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training_models, "SHAPES", dict.fromkeys(training_models.SHAPES, TINY))
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def spec(side: str, task: Any) -> Spec:
    return Spec(side, task, "s35", "t60", steps=2, threads=1)


@pytest.mark.parametrize(("task", "kind"), [("sft", "bf16"), ("kd", "fp32")])
def test_our_side_and_the_minimal_loop(task: Any, kind: str) -> None:
    ours, minimal = run_ours(spec(f"ours-{kind}", task)), run_minimal(spec(f"minimal-{kind}", task))
    assert ours["tokens_per_s"] > 0 and minimal["tokens_per_s"] > 0
    assert 0.5 < sum(share for name, share in ours.items() if name.startswith("time/")) <= 1.0


@pytest.mark.parametrize(
    ("side", "task"), [("trl-packed-fp32", "sft"), ("gkd-bf16", "kd"), ("distillation-bf16", "kd")]
)
def test_the_peers(side: str, task: Any) -> None:
    pytest.importorskip("trl")
    from raystill.bench.trl_sides import run_trl

    found = run_trl(spec(side, task))
    assert found["tokens_per_s"] > 0 and found["peak_mb"] > 0
