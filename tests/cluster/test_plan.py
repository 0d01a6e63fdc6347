"""Plans: what is reused, what is counted, what is estimated, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raystill.bench.random_teacher import RandomTeacherShape, build_random_teacher
from raystill.cluster.plan import compute_plan
from raystill.config.schema import Config
from raystill.errors import Problem
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult, execute

NAMES: tuple[StageName, ...] = ("prepare", "generate", "sft", "distill", "evaluate", "export")
STUDENT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
           "vocab_size": 100}  # fmt: skip


def make(tmp_path: Path, **sections: Any) -> Config:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "hello there"}\n' * 100, encoding="utf-8")
    values: dict[str, Any] = {
        "run": {"name": "r", "dir": str(tmp_path / "runs")},
        "device": {"type": "cpu"},
        "prompts": {"sources": [{"path": str(source)}], "eval_size": 20},
        "teacher": {"open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 10}}},
        "student": STUDENT,
        "train": {
            "sft": {"per_device_train_batch_size": 4, "num_train_epochs": 2, "dataset": {"test_size": 0.1}},
            "distillation": {"steps": 7},
        },
    }
    return Config.model_validate(values | sections)


def stage(name: StageName) -> Stage:
    def body(context: StageContext) -> StageResult:
        path = context.output / "x"
        path.write_text("x", encoding="utf-8")
        return StageResult(counts={"kept": 90, "eval": 10}, files=[path])

    return Stage(name, ("run.seed",), lambda config: (), body)


STAGES = [stage(name) for name in NAMES]


def test_steps_rows_and_tokens(tmp_path: Path) -> None:
    plan = compute_plan(make(tmp_path), STAGES)
    assert plan.workload.rows == 100 and plan.workload.eval_rows == 20
    assert plan.workload.completion_tokens == 500
    # 80 training rows less a tenth, in batches of 4, twice.
    assert plan.steps == {"sft": 36, "distill": 7}
    assert plan.student_parameters is not None
    assert plan.memory_bytes == 16 * plan.student_parameters
    assert [item.action for item in plan.stages] == ["run"] * 6


def test_signal_bytes_scale_with_the_stored_logprobs(tmp_path: Path) -> None:
    def generate_bytes(num_logprobs: int) -> int:
        teacher = {
            "open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 10}},
            "signals": {"num_logprobs": num_logprobs},
        }
        found = compute_plan(make(tmp_path, teacher=teacher), STAGES).stages[1].disk_bytes
        assert found is not None
        return found

    assert generate_bytes(20) - generate_bytes(0) == 500 * 57
    assert generate_bytes(40) - generate_bytes(20) == 500 * 57
    assert generate_bytes(0) > 500 * 6


def test_signals_take_disk_once_where_they_are_captured(tmp_path: Path) -> None:
    stages = [stage(name) for name in ("generate", "score")]

    def sizes(capture: str) -> list[int]:
        opened = {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 10}}
        teacher = {"open": opened, "signals": {"capture": capture}}
        found = compute_plan(make(tmp_path, teacher=teacher), stages).stages
        return [item.disk_bytes or 0 for item in found]

    with_answers, later = sizes("generation"), sizes("score")
    assert later[1] == 500 * 57 and with_answers[1] == 0
    assert with_answers[0] - later[0] == 500 * 57


def test_finished_stages_cost_nothing_and_their_counts_are_used(tmp_path: Path) -> None:
    config = make(tmp_path)
    before = compute_plan(config, STAGES)
    execute(STAGES[0], config, RunPaths.from_config(config))
    plan = compute_plan(config, STAGES)
    assert plan.stages[0].action == "reuse" and plan.stages[0].seconds == 0.0
    assert plan.workload.rows == 90 and plan.workload.is_measured
    assert before.stages[0].seconds is not None and before.stages[0].seconds > 0


def test_a_changed_stage_is_a_blocker_with_its_keys(tmp_path: Path) -> None:
    config = make(tmp_path)
    execute(STAGES[0], config, RunPaths.from_config(config))
    changed = make(tmp_path, run={"name": "r", "dir": str(tmp_path / "runs"), "seed": 9})
    plan = compute_plan(changed, STAGES, [Problem("first")])
    assert plan.stages[0].action == "refuse"
    assert plan.blockers[0].what == "first"
    assert "run.seed: 0 -> 9" in plan.blockers[1].what


def test_what_is_unknown_is_none_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    plan = compute_plan(make(tmp_path, prompts={"sources": [{"path": "nowhere.jsonl"}]}), STAGES)
    assert plan.workload.rows is None
    assert plan.teacher_parameters is None
    assert plan.unknown[:2] == ("prepare", "generate")
    assert plan.stages[1].seconds is None and plan.stages[1].disk_bytes is None
    assert any("nowhere.jsonl" in line for line in plan.assumptions)
    assert any("order of magnitude" in line for line in plan.assumptions)


def test_too_little_disk_is_a_warning(tmp_path: Path) -> None:
    """I35."""
    training = {"checkpoint_cleanup": {"min_free_space_gb": 1e9}}
    assert any(
        "min_free_space_gb" in line.what and line.fix
        for line in compute_plan(make(tmp_path, training=training), STAGES).warnings
    )


def test_a_plan_is_json(tmp_path: Path) -> None:
    data = json.loads(json.dumps(compute_plan(make(tmp_path), STAGES).to_json()))
    assert data["stages"][0]["name"] == "prepare"
    assert {"blockers", "assumptions", "warnings", "free_disk_bytes", "steps"} <= data.keys()


def test_a_student_that_is_no_smaller_than_its_teacher_is_warned_of(tmp_path: Path) -> None:
    """I48."""
    teacher = build_random_teacher(tmp_path / "teacher", RandomTeacherShape(hidden_size=32, vocab_size=300))
    opened = {"open": {"model": {"name": str(teacher)}}}
    big = {**STUDENT, "hidden_size": 512, "intermediate_size": 2048}
    assert any(
        "large ones" in each.what and each.fix
        for each in compute_plan(make(tmp_path, teacher=opened, student=big), STAGES).warnings
    )
    same = make(tmp_path, teacher=opened, student={"base_model_name": str(teacher)})
    assert any("teacher itself" in each.what for each in compute_plan(same, STAGES).warnings)
    small = make(tmp_path, teacher=opened, student={**STUDENT, "hidden_size": 8, "intermediate_size": 8})
    assert not any("student" in each.what for each in compute_plan(small, STAGES).warnings)
