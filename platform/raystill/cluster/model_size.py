"""How many parameters a model has, from its files' headers or its architecture keys; no torch needed."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from raystill.config.models import StudentSection
from raystill.config.student_init import fresh_architecture, resolve_student_init

_HEADER_LIMIT = 100 << 20
_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def compute_num_parameters(architecture: Mapping[str, Any]) -> int:
    """Parameters of a decoder with grouped-query attention and a gated feed-forward block.

    `architecture` has the names of a transformers config. Embedding V*D (twice if untied); per block
    attention D*(H*h)*2 + D*(G*h)*2 for H heads and G key/value heads of width h (qwen2: biases on q, k and v;
    qwen3: norms of width h on q and k), feed-forward 3*D*I, two norms; one final norm.
    """
    D, L, intermediate = (
        int(architecture[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    heads = int(architecture["num_attention_heads"])
    kv_heads = int(architecture.get("num_key_value_heads") or heads)
    head_dim = int(architecture.get("head_dim") or D // heads)
    query, key_value = heads * head_dim, kv_heads * head_dim
    block = 2 * D * query + 2 * D * key_value + 3 * D * intermediate + 2 * D
    if architecture["model_type"] == "qwen2":
        block += query + 2 * key_value
    if architecture["model_type"] == "qwen3":
        block += 2 * head_dim
    embeddings = int(architecture["vocab_size"]) * D
    return embeddings * (1 if architecture.get("tie_word_embeddings", False) else 2) + L * block + D


def load_architecture(directory: Path) -> dict[str, Any] | None:
    """The config.json of a local model, or None where there is none to read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def count_local_parameters(directory: Path) -> int | None:
    """Parameters of a local checkpoint: exact from safetensors headers, else from a known config.json."""
    files = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    if files:
        counts = [_count_file(path) for path in files]
        if all(count is not None for count in counts):
            return sum(count for count in counts if count is not None)
    architecture = load_architecture(directory)
    if architecture is None or architecture.get("model_type") not in _ARCHITECTURES:
        return None
    try:
        return compute_num_parameters(architecture)
    except (KeyError, TypeError, ValueError):
        return None


def student_parameters(student: StudentSection, vocab_size: int | None) -> int | None:
    """Parameters of the student that the keys or the local base checkpoint give; None if neither says."""
    init = resolve_student_init(student)
    if init is None:
        return None
    base = Path(student.base_model_name).expanduser() if student.base_model_name else None
    if init == "base":
        return None if base is None else count_local_parameters(base)
    architecture = fresh_architecture(student, vocab_size)
    if init == "shrink":
        own = load_architecture(base) if base is not None else None
        if own is None or own.get("model_type") not in _ARCHITECTURES:
            return None
        # The number of key/value heads, where it is left to the cut, is at most the base's.
        fixed = ("model_type", "vocab_size", "tie_word_embeddings", "num_key_value_heads")
        given = {key: value for key, value in student.model_dump().items() if key in fixed}
        architecture |= {key: given[key] if given[key] is not None else own.get(key) for key in fixed}
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if any(architecture[key] is None for key in needed):
        return None
    return compute_num_parameters(architecture)


def _count_file(path: Path) -> int | None:
    """Elements of all tensors in a safetensors file: 8 bytes of header length, then a JSON header."""
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _HEADER_LIMIT:
                return None
            header = json.loads(stream.read(size))
        if not isinstance(header, dict):
            return None
        return sum(int(prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
