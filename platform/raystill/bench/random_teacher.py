"""A small teacher with random weights, made in seconds: benchmarks and tests need speed, not answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raystill.demo.chat_tokenizer import train_chat_tokenizer


@dataclass(frozen=True)
class RandomTeacherShape:
    """Architecture of a Qwen2-style model; the defaults make about 3.3 M parameters."""

    vocab_size: int = 512
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 512
    initializer_range: float = 0.2


def build_random_teacher(directory: Path, shape: RandomTeacherShape | None = None, seed: int = 0) -> Path:
    """Write a Qwen2-style checkpoint (safetensors) with a byte-level BPE tokenizer and a chat template.

    The large `initializer_range` gives distributions with an entropy like a trained model's, so that sampling
    and top-k work as they do in earnest. Returns `directory`.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    shape = shape or RandomTeacherShape()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_chat_tokenizer(_sentences(), shape.vocab_size)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _sentences() -> Iterator[str]:
    subjects = ("the worker", "a small model", "the teacher", "every student", "one careful reader")
    verbs = ("writes", "reads", "keeps", "measures", "repeats", "forgets", "explains")
    objects = ("a letter", "the long table", "three numbers", "an old story", "the same question", "nothing")
    for number in range(40):
        for subject in subjects:
            for verb in verbs:
                yield f"{subject} {verb} {objects[(number + len(verb)) % len(objects)]} number {number * 7}"
