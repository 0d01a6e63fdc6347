"""What `auto` means for the student's first weights."""

from __future__ import annotations

import pytest

from raystill.config.models import StudentSection
from raystill.config.student_init import given_architecture_keys, resolve_student_init

KEYS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("values", "init"),
    [
        ({}, None),
        (KEYS, "fresh"),
        ({"base_model_name": "x"}, "base"),
        ({"base_model_name": "x", **KEYS}, "shrink"),
        ({"base_model_name": "x", **KEYS, "init": "fresh"}, "fresh"),
        ({"init": "base"}, "base"),
        ({"hidden_size": 64}, "fresh"),
    ],
)
def test_auto_goes_by_what_is_given(values: dict[str, object], init: str | None) -> None:
    assert resolve_student_init(StudentSection.model_validate(values)) == init


def test_given_keys_keep_their_order() -> None:
    student = StudentSection(num_attention_heads=2, hidden_size=4)
    assert given_architecture_keys(student) == ("hidden_size", "num_attention_heads")
