"""The two teachers that benchmarks run: the demo's own, and a random one of about 60 M parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from raystill.bench.random_teacher import RandomTeacherShape, build_random_teacher

Model = Literal["tiny", "60M"]
_DEMO_TEACHER = Path(__file__).parents[1] / "demo" / "teacher"
# A vocabulary of a real model's order, and distributions about as sharp.
_MIDDLE_SHAPE = RandomTeacherShape(
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2304,
    num_hidden_layers=5,
    num_attention_heads=12,
    num_key_value_heads=4,
    initializer_range=0.15,
)


def place_teacher(model: Model, directory: Path) -> Path:
    """Where the teacher lies: the bundled one where it is, anything else written to `directory`."""
    if model == "60M":
        return build_random_teacher(directory, _MIDDLE_SHAPE)
    if (_DEMO_TEACHER / "config.json").exists():
        return _DEMO_TEACHER
    return build_random_teacher(directory)
