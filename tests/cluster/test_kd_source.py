"""The plan says where the distributions come from and what their teachers weigh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raystill.cluster.kd_source import plan_kd_source
from raystill.config.schema import Config

DEMO = Path(__file__).resolve().parents[2] / "platform" / "raystill" / "demo" / "teacher"


def planned(teacher: dict[str, Any], **distillation: Any) -> Any:
    sections = {
        "teacher": {"open": {"model": {"name": str(DEMO)}}},
        "train": {"distillation": {"teacher": teacher, **distillation}},
    }
    return plan_kd_source(Config.model_validate(sections), 1000)


def test_the_store_needs_no_teacher_in_memory() -> None:
    assert planned({"source": "store"}).teacher_bytes == 0
    assert plan_kd_source(Config(), 1000) is None


def test_models_in_process_are_weighed() -> None:
    found = planned({"source": "online", "models": [{"name": "teacher"}, {"name": "student"}]})
    assert "teacher, student" in found.text
    from raystill.cluster.model_size import count_local_parameters

    size = count_local_parameters(DEMO)
    assert size is not None
    assert found.teacher_bytes == 4 * (size + 1000)


def test_a_process_of_their_own_and_smaller_weights_are_told() -> None:
    models = [{"name": str(DEMO), "weights": "bfloat16"}, {"name": str(DEMO), "weights": "4bit"}]
    found = planned({"source": "online", "models": models, "worker": {"num_cpus": 2}})
    assert "a process of its own" in found.text
    whole = planned({"source": "online", "models": [{"name": str(DEMO)}]}).teacher_bytes
    assert found.teacher_bytes == whole * 3 // 4


@pytest.mark.parametrize(("lora", "size"), [({"r": 4}, 0), (None, 4000)])
def test_an_adapters_base_is_there_already(lora: dict[str, int] | None, size: int) -> None:
    teacher = {"source": "on_policy", "models": [{"name": "student"}], "rollouts": {"share": 0.25}}
    found = planned(teacher, peft={"lora": lora})
    assert found.teacher_bytes == size
    assert "25%" in found.text


def test_a_model_that_is_not_here_has_no_size() -> None:
    assert planned({"source": "online", "models": [{"name": "some/model"}]}).teacher_bytes is None
