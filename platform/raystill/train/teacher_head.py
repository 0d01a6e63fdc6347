"""The output projection of a stored teacher, without the teacher: from hidden states to logits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raystill.config.schema import Config
from raystill.errors import DataError

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight")


@dataclass(frozen=True)
class TeacherHead:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap); no softcap: without the tanh."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def to(self, device: torch.device) -> TeacherHead:
        """The same head on `device`."""
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return TeacherHead(self.weight_VD.to(device), bias_V, self.softcap, self.scale)


def load_teacher_head(config: Config) -> TeacherHead:
    """The head of teacher.open's checkpoint, in float32: one tensor is read, not the model.

    A tied head is the embedding. Raises DataError where the checkpoint has neither.
    """
    assert config.teacher.open is not None, "hidden states come from a teacher with open weights"
    model = config.teacher.open.model
    directory = _directory(model.save_path or model.name, model.name, model.revision)
    return read_head(directory)


def read_head(directory: Path) -> TeacherHead:
    """The head of the checkpoint in `directory`. Raises DataError where there is none to read."""
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    settings = settings.get("text_config", settings)
    files = _files_of_tensors(directory)
    tied = bool(settings.get("tie_word_embeddings", False))
    name = _find(files, _EMBEDDINGS if tied else _HEADS) or _find(files, _EMBEDDINGS)
    if name is None:
        raise DataError(
            "the teacher's checkpoint has no output projection by a known name",
            where=str(directory),
            fix="store topk signals instead: teacher.signals.kind: topk",
        )
    bias = name.removesuffix("weight") + "bias"
    return TeacherHead(
        _read(files[name], name),
        _read(files[bias], bias) if bias in files else None,
        settings.get("final_logit_softcapping"),
        float(settings.get("logit_scale") or 1.0) / float(settings.get("logits_scaling") or 1.0),
    )


def _directory(place: str, name: str, revision: str | None) -> Path:
    if Path(place).is_dir():
        return Path(place)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _files_of_tensors(directory: Path) -> dict[str, Path]:
    from safetensors import safe_open

    index = directory / _INDEX
    if index.exists():
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: directory / file for name, file in places.items()}
    if not (directory / _WEIGHTS).exists():
        raise DataError(
            "the teacher's checkpoint has no safetensors",
            where=str(directory),
            fix="save it as safetensors, or store topk signals instead",
        )
    with safe_open(directory / _WEIGHTS, framework="pt") as opened:
        return {name: directory / _WEIGHTS for name in opened.keys()}  # noqa: SIM118


def _find(files: dict[str, Path], endings: tuple[str, ...]) -> str | None:
    return next((name for ending in endings for name in sorted(files) if name.endswith(ending)), None)


def _read(path: Path, name: str) -> Tensor:
    from safetensors import safe_open

    opened: Any
    with safe_open(path, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor.float()
