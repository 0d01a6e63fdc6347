"""What `student.init: auto` means, and the shape that a fresh student gets from its keys."""

from __future__ import annotations

from typing import Any, Literal

from raystill.config.models import StudentSection

ARCHITECTURE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# What a fresh student has where its keys don't say; a base checkpoint has its own.
FRESH_MODEL_TYPE = "qwen2"
FRESH_MAX_POSITIONS = 1024
FRESH_ROPE_THETA = 10000.0

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


def resolve_head_dim(student: StudentSection) -> int:
    """Width of a head: its key, else hidden_size / num_attention_heads (which must be given)."""
    return student.head_dim or (student.hidden_size or 0) // (student.num_attention_heads or 1)


def resolve_max_positions(student: StudentSection) -> int | None:
    """Longest sequence of the student as far as the keys tell: None where its base decides."""
    if student.max_position_embeddings is not None or resolve_student_init(student) != "fresh":
        return student.max_position_embeddings
    return FRESH_MAX_POSITIONS


def fresh_architecture(student: StudentSection, vocab_size: int | None) -> dict[str, Any]:
    """A fresh student's shape in the names of a transformers config; `vocab_size` is the tokenizer's.

    The four architecture keys may still be None.
    """
    heads = student.num_attention_heads
    return {
        "model_type": student.model_type or FRESH_MODEL_TYPE,
        "vocab_size": student.vocab_size or vocab_size,
        "hidden_size": student.hidden_size,
        "intermediate_size": student.intermediate_size,
        "num_hidden_layers": student.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": student.num_key_value_heads or heads,
        "head_dim": resolve_head_dim(student) if heads else None,
        "max_position_embeddings": student.max_position_embeddings or FRESH_MAX_POSITIONS,
        "rope_theta": student.rope_theta or FRESH_ROPE_THETA,
        "tie_word_embeddings": True if student.tie_word_embeddings is None else student.tie_word_embeddings,
    }
