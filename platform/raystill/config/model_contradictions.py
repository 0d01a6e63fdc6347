"""Contradictions of how models are held while they train: 4 bits, and parts of a model per worker."""

from __future__ import annotations

from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.config.signal_source import resolve_signal_source
from raystill.errors import Problem

_PARALLELISM = "training.parallelism"
_BITS = "assistant.quantization"


def find_model_contradictions(loaded: LoadedConfig) -> Iterator[Problem]:
    """4-bit keys without 4 bits, and what FSDP can't be combined with."""
    yield from _idle_bits(loaded)
    if loaded.config.training.parallelism == "fsdp":
        yield from _fsdp(loaded)


def _idle_bits(loaded: LoadedConfig) -> Iterator[Problem]:
    assistant = loaded.config.assistant
    if assistant is None or assistant.quantization is None or assistant.quantization.load_in_4bit:
        return
    for name in ("bfloat16", "bnb_4bit_use_double_quant", "bnb_4bit_quant_type"):
        if loaded.is_changed(f"{_BITS}.{name}"):
            yield Problem(
                f"`{_BITS}.{name}` has no effect: `{_BITS}.load_in_4bit` is false",
                loaded.where(f"{_BITS}.{name}", f"{_BITS}.load_in_4bit"),
                "remove the key, or set load_in_4bit: true",
            )


def _fsdp(loaded: LoadedConfig) -> Iterator[Problem]:
    config = loaded.config
    for path, section in (("train.sft", config.train.sft), ("train.distillation", config.train.distillation)):
        if section is not None and section.fp16:
            yield Problem(
                f"`{_PARALLELISM}` is fsdp and `{path}.fp16` is true: every worker would scale its own part "
                "of the gradient",
                loaded.where(_PARALLELISM, f"{path}.fp16"),
                "use bfloat16, or training.parallelism: ddp",
            )
    assistant = config.assistant
    if assistant is not None and assistant.quantization is not None and assistant.quantization.load_in_4bit:
        yield Problem(
            f"`{_PARALLELISM}` is fsdp and `{_BITS}.load_in_4bit` is true: 4-bit weights can't be cut",
            loaded.where(_PARALLELISM, f"{_BITS}.load_in_4bit"),
            "use training.parallelism: ddp; a 4-bit base is small",
        )
    distillation = config.train.distillation
    if distillation is None:
        return
    source, is_beside = resolve_signal_source(config), distillation.teacher.worker is not None
    if source == "on_policy" or (source == "online" and not is_beside):
        reason, more = (
            ("a student in parts can't write rollouts", "")
            if source == "on_policy"
            else (
                "the student learns from a model beside it: a teacher in process is whole in every worker",
                ", or give the teacher a process of its own: train.distillation.teacher.worker",
            )
        )
        yield Problem(
            f"`{_PARALLELISM}` is fsdp, and {reason}",
            loaded.where(_PARALLELISM, "train.distillation.teacher.source"),
            f"use training.parallelism: ddp, or the store as the source{more}",
        )
