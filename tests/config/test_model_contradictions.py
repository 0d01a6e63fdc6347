"""How models are held while they train: what can't be meant together."""

from __future__ import annotations

import pytest

from raystill.config.load import load_config
from raystill.errors import ConfigError

FRESH = [
    "student.hidden_size=64", "student.intermediate_size=128",
    "student.num_hidden_layers=2", "student.num_attention_heads=4",
]  # fmt: skip
BITS = ["assistant.model.name=x", "assistant.lora={}", "train.sft={}"]
TEACHER = "train.distillation.teacher"
ONLINE = [f"{TEACHER}.source=online", "teacher.open.model.name=x/y"]
WRITTEN = [
    f"{TEACHER}.source=on_policy",
    "teacher.open.model.name=x/y",
    "losses.kl_weight=1",
    "losses.ce_weight=0",
]


@pytest.mark.parametrize(
    ("overrides", "paths"),
    [
        ([*BITS, "assistant.quantization.bnb_4bit_quant_type=fp4"],
         ["assistant.quantization.bnb_4bit_quant_type", "assistant.quantization.load_in_4bit"]),
        ([*BITS, "assistant.quantization.bfloat16=false"], ["assistant.quantization.bfloat16"]),
        ([*BITS, "assistant.quantization.load_in_4bit=true", "training.parallelism=fsdp"],
         ["training.parallelism", "assistant.quantization.load_in_4bit"]),
        ([*FRESH, "train.sft.fp16=true", "training.parallelism=fsdp"],
         ["training.parallelism", "train.sft.fp16"]),
        ([*FRESH, *ONLINE, "training.parallelism=fsdp"],
         ["training.parallelism", "train.distillation.teacher.source"]),
        ([*FRESH, *WRITTEN, f"{TEACHER}.worker={{}}", "training.parallelism=fsdp"], ["write rollouts"]),
        ([*FRESH, "student.head_dim=7"], ["student.head_dim"]),
        ([*FRESH, "student.adapter=some/where"], ["student.adapter", "student.base_model_name"]),
        ([*FRESH, "training.max_seq_len=2048"], ["training.max_seq_len"]),
        (["student.base_model_name=x", "student.max_position_embeddings=512"], ["training.max_seq_len"]),
    ],
)  # fmt: skip
def test_contradictions_are_refused_with_both_places(overrides: list[str], paths: list[str]) -> None:
    """I6."""
    with pytest.raises(ConfigError) as caught:
        load_config([], overrides)
    for path in paths:
        assert path in str(caught.value), path


@pytest.mark.parametrize(
    "overrides",
    [
        [*BITS, "assistant.quantization.load_in_4bit=true", "assistant.quantization.bnb_4bit_quant_type=fp4"],
        [*BITS, "assistant.quantization={}"],
        [*FRESH, "training.parallelism=fsdp", "training.num_workers=2", "train.sft.bfloat16=true"],
        [*FRESH, *ONLINE, f"{TEACHER}.worker={{}}", "training.parallelism=fsdp"],
        [*FRESH, "student.head_dim=32"],
        [*FRESH, "student.base_model_name=x", "training.max_seq_len=4096"],
    ],
)
def test_what_goes_together_loads(overrides: list[str]) -> None:
    load_config([], overrides)
