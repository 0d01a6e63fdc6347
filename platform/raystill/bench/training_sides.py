"""One side of a training benchmark in a process of its own: tokens per second and peak memory.

`ours` is the product's step, with its order, packing, clock, clipping and counters. `minimal` is what is left
when nothing is wasted: forward pass, loss, backward pass, fused AdamW, on batches that were made before.
Weights are float32; a side whose name ends in -bf16 multiplies in bfloat16 autocast, one in -fp32 doesn't.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from raystill.bench.own_process import peak_memory_mb
from raystill.bench.training_models import (
    BATCH_ROWS,
    LENGTH,
    PROMPT_LENGTH,
    ModelName,
    build_model,
    make_examples,
    make_kd_rows,
    make_sft_rows,
)
from raystill.config.schema import Config
from raystill.train.examples import ExampleSet
from raystill.train.settings import TrainSettings, resolve_settings

Task = Literal["sft", "kd"]
WARM_STEPS = 2
_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Spec:
    """What a side does: `steps` timed steps after two others, on a student and, for KD, its teacher."""

    side: str
    task: Task
    student: ModelName
    teacher: ModelName
    steps: int
    threads: int

    @property
    def is_bfloat16(self) -> bool:
        """Whether the side multiplies in bfloat16."""
        return self.side.endswith("-bf16")

    @property
    def num_rows(self) -> int:
        """Rows of all steps."""
        return (self.steps + WARM_STEPS) * BATCH_ROWS


def make_rows(spec: Spec, vocab_size: int) -> list[list[int]]:
    """The rows that every side of a task trains on."""
    return (make_sft_rows if spec.task == "sft" else make_kd_rows)(spec.num_rows, vocab_size)


def time_steps(step: Callable[[int], int], spec: Spec) -> dict[str, float]:
    """Run the steps; `step` returns its real tokens."""
    for number in range(WARM_STEPS):
        step(number)
    started, tokens = time.perf_counter(), 0
    for number in range(WARM_STEPS, WARM_STEPS + spec.steps):
        tokens += step(number)
    seconds = time.perf_counter() - started
    return {"tokens_per_s": tokens / seconds, "peak_mb": peak_memory_mb()}


def run_ours(spec: Spec) -> dict[str, float]:
    """The product's step."""
    import torch

    from raystill.train.attention import enable_packing
    from raystill.train.batches import StepPlanner
    from raystill.train.clock import StepClock
    from raystill.train.group import WorkerGroup
    from raystill.train.objective import build_objective
    from raystill.train.optimizer import build_optimizer
    from raystill.train.state import TrainState
    from raystill.train.step import train_step
    from raystill.train.student import Student

    model = build_model(spec.student)
    enable_packing(model)
    model.train()
    student, settings = Student(model, model), _settings(spec)
    examples = _examples(spec, student.vocab_size)
    state = TrainState(
        student,
        build_optimizer(student.network, settings),
        torch.amp.GradScaler("cpu", enabled=False),
        total_steps=spec.steps + WARM_STEPS,
    )
    planner, objective = StepPlanner(examples, settings), build_objective(settings.terms)
    clock = StepClock()

    def step(number: int) -> int:
        plan = planner.plan(number, 0)
        train_step(state, plan, examples, objective, settings, WorkerGroup(), clock)
        return sum(int((examples.lengths[rows] - 1).sum()) for rows in plan.micro_batches)

    found = time_steps(step, spec)
    return found | clock.read()[1]


def run_minimal(spec: Spec) -> dict[str, float]:
    """A loop with nothing in it; SFT's rows are sorted by length, so that batches are nearly full."""
    import torch
    from torch.nn.functional import linear_cross_entropy

    from raystill.losses.chunked import chunked_loss
    from raystill.train.batches import collate

    model = build_model(spec.student)
    model.train()
    examples, terms = _examples(spec, model.config.vocab_size), _settings(spec).terms.last
    by_length = np.argsort(examples.lengths, kind="stable")
    order = np.random.default_rng(0).permutation(spec.num_rows // BATCH_ROWS)
    groups = [by_length[number * BATCH_ROWS : (number + 1) * BATCH_ROWS] for number in order]
    batches = [collate(examples, rows, 0, torch.device("cpu")) for rows in groups]
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)

    def step(number: int) -> int:
        batch = batches[number]
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.is_bfloat16):
            hidden_BTD = model.base_model(input_ids=batch.input_ids_BT, use_cache=False)[0]
            hidden_ND = hidden_BTD.flatten(0, 1)[batch.loss_index_N]
            if spec.task == "sft":
                weight = model.lm_head.weight
                loss = linear_cross_entropy(hidden_ND, weight.to(hidden_ND.dtype), batch.target_ids_N)
            else:
                whole = chunked_loss(
                    hidden_ND, model.lm_head.weight, batch.target_ids_N, terms, teacher=batch.teacher
                )
                loss = whole.sum / whole.num_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch.num_real_tokens

    return time_steps(step, spec)


def _examples(spec: Spec, vocab_size: int) -> ExampleSet:
    is_kd = spec.task == "kd"
    rows = make_rows(spec, vocab_size)
    return make_examples(rows, PROMPT_LENGTH if is_kd else 1, vocab_size, signal=is_kd)


def _settings(spec: Spec) -> TrainSettings:
    stage: dict[str, Any] = {"per_device_train_batch_size": BATCH_ROWS, "learning_rate": _LEARNING_RATE}
    config = Config.model_validate(
        {
            "training": {"steps": spec.steps + WARM_STEPS, "max_seq_len": LENGTH},
            "train": {"sft": stage, "distillation": stage},
            "teacher": {"signals": {"num_logprobs": 64}},
            "losses": {"kl_weight": 1.0, "ce_weight": 0.0},
        }
    )
    settings = resolve_settings(config, "sft" if spec.task == "sft" else "distill")
    return replace(settings, precision="bfloat16" if spec.is_bfloat16 else "float32", packed=True)


def main() -> None:
    """Run the side that the first argument (JSON) describes, and print what it found as JSON."""
    import torch

    spec = Spec(**json.loads(sys.argv[1]))
    torch.set_num_threads(spec.threads)
    if spec.side.startswith("ours-"):
        found = run_ours(spec)
    elif spec.side.startswith("minimal-"):
        found = run_minimal(spec)
    else:
        from raystill.bench.trl_sides import run_trl

        found = run_trl(spec)
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
