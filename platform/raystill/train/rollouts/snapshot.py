"""The student's weights as a checkpoint would name them, adapters merged, for an engine of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from raystill.train.student import Student
from raystill.train.teachers.aligner import PROJECTIONS

WEIGHTS_NAME = "model.safetensors"


def write_snapshot(student: Student, directory: Path, dtype: torch.dtype) -> None:
    """Write the weights that the student has now, a tied one under each of its names, and a config to match.

    vLLM keeps a packed copy of a tied head that reloading the embedding doesn't reach. Untied, each matrix is
    loaded by its own name. Files are replaced by rename.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = student.causal_lm.config.to_dict() | {"tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    temporary = directory / f"{WEIGHTS_NAME}.tmp"
    with torch.no_grad():
        weights = {name: tensor.to("cpu", dtype, copy=True) for name, tensor in iter_weights(student)}
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(directory / WEIGHTS_NAME)


def iter_weights(student: Student) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the whole model, tied ones by all their names; a LoRA layer's is base + delta.
    What is in it for training alone (`teachers.aligner`) is left out.

    Nothing is merged in place: subtracting a delta again would not give the base back bit for bit.
    """
    modules: dict[str, Any] = dict(student.causal_lm.named_modules())
    for name, tensor in student.causal_lm.state_dict(keep_vars=True).items():
        owner_name, _, leaf = name.rpartition(".")
        if "lora_" in name or ".original_module" in name or name.startswith(f"{PROJECTIONS}."):
            continue
        value = tensor.detach()
        if leaf == "weight" and owner_name.endswith(".base_layer"):
            layer = modules[owner_name.removesuffix(".base_layer")]
            value = value + layer.get_delta_weight("default").to(value.dtype)
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        yield plain, value
