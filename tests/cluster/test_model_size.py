"""Parameter counts without torch equal the ones that torch counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from raystill.cluster.model_size import compute_num_parameters, count_local_parameters, student_parameters
from raystill.config.models import StudentSection

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 301,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3", "mistral"])
def test_the_formula_is_what_transformers_builds(model_type: str, tied: bool, tmp_path: Path) -> None:
    extra = {"head_dim": 16} if model_type == "qwen3" else {}
    config = AutoConfig.for_model(model_type, tie_word_embeddings=tied, **SHAPE, **extra)
    model = AutoModelForCausalLM.from_config(config)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert compute_num_parameters(config.to_dict()) == expected
    config.save_pretrained(tmp_path)
    assert count_local_parameters(tmp_path) == expected
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert count_local_parameters(tmp_path) == expected


def test_a_student_is_sized_by_its_keys_or_by_its_base(tmp_path: Path) -> None:
    keys = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    fresh = StudentSection(**keys)
    assert student_parameters(fresh, 301) == compute_num_parameters(
        SHAPE | {"model_type": "qwen2", "tie_word_embeddings": True}
    )
    assert student_parameters(fresh, None) is None
    assert student_parameters(StudentSection(base_model_name="org/on-the-hub"), 301) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x04\0\0\0\0\0\0\0null", b"\x02\0\0\0\0\0\0\0{}x"])
def test_broken_files_are_unknown_not_fatal(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert count_local_parameters(tmp_path) in (None, 0)
    assert count_local_parameters(tmp_path / "nowhere") is None
