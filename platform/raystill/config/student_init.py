"""What `student.init: auto` means: where the student's first weights come from."""

from __future__ import annotations

from typing import Literal

from raystill.config.models import StudentSection

ARCHITECTURE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

StudentInit = Literal["base", "fresh", "shrink"]


def given_architecture_keys(student: StudentSection) -> tuple[str, ...]:
    """Those of the four keys that define a fresh student's shape which have a value."""
    return tuple(key for key in ARCHITECTURE_KEYS if getattr(student, key) is not None)


def resolve_student_init(student: StudentSection) -> StudentInit | None:
    """`base` for a checkpoint's weights, `fresh` for new weights in the shape of the keys, `shrink` for a
    checkpoint cut to the shape of the keys; None where the student is not described at all.
    """
    if student.init != "auto":
        return student.init
    if given_architecture_keys(student):
        return "fresh" if student.base_model_name is None else "shrink"
    return None if student.base_model_name is None else "base"
