"""A student with new weights, of the size that its architecture keys give."""

from __future__ import annotations

from typing import Any

import torch

from raystill.config.models import StudentSection
from raystill.config.student_init import ARCHITECTURE_KEYS, fresh_architecture
from raystill.errors import ConfigError
from raystill.text.chat import ChatFormat


def build_fresh(student: StudentSection, chat: ChatFormat, attention: str) -> Any:
    """New weights in float32 from torch's current seed, on the device that is torch's default.

    Raises ConfigError for missing keys, a vocabulary smaller than the tokenizer's, and heads that don't come
    out even.
    """
    from transformers import AutoModelForCausalLM

    config = fresh_config(student, chat)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def fresh_config(student: StudentSection, chat: ChatFormat) -> Any:
    """The transformers config of a fresh student. Raises what `build_fresh` raises."""
    from transformers import AutoConfig

    missing = [key for key in ARCHITECTURE_KEYS if getattr(student, key) is None]
    if missing:
        raise ConfigError(
            f"a fresh student needs {', '.join(missing)}",
            where=", ".join(f"student.{key}" for key in missing),
            fix="set them, or set student.base_model_name to start from a checkpoint",
        )
    shape = fresh_architecture(student, len(chat.tokenizer))
    if shape["vocab_size"] < len(chat.tokenizer):
        raise ConfigError(
            f"student.vocab_size is {shape['vocab_size']}, and the tokenizer has "
            f"{len(chat.tokenizer)} tokens",
            where="student.vocab_size",
            fix="unset it, or give at least the tokenizer's size (more is padding)",
        )
    _refuse_uneven_heads(shape)
    theta = shape.pop("rope_theta")
    return AutoConfig.for_model(
        **shape,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        initializer_range=student.initializer_range,
        bos_token_id=chat.tokenizer.bos_token_id,
    )


def _refuse_uneven_heads(shape: dict[str, Any]) -> None:
    hidden, heads, groups = (
        shape[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if hidden % heads or heads % groups or shape["head_dim"] % 2:
        raise ConfigError(
            f"width {hidden} over {heads} heads of {shape['head_dim']} and {groups} key/value heads doesn't "
            "come out even",
            where="student.num_attention_heads",
            fix="make hidden_size an even multiple of the heads, and the heads of the key/value heads",
        )
