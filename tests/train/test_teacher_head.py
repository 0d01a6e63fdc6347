from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raystill.errors import DataError
from raystill.train.teacher_head import read_head


def write(directory: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


EMBEDDING = torch.arange(12.0).reshape(4, 3)


def test_a_head_of_its_own_wins_over_the_embedding(tmp_path: Path) -> None:
    head = EMBEDDING.to(torch.bfloat16) + 1
    tensors = {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": head, "lm_head.bias": torch.ones(4)}
    found = read_head(write(tmp_path, tensors, logits_scaling=2.0, final_logit_softcapping=30.0))
    assert torch.equal(found.weight_VD, head.float()) and found.bias_V is not None
    assert found.scale == 0.5 and found.softcap == 30.0


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    found = read_head(write(tmp_path, {"model.embed_tokens.weight": EMBEDDING}, tie_word_embeddings=True))
    assert torch.equal(found.weight_VD, EMBEDDING) and found.bias_V is None and found.scale == 1.0


def test_a_checkpoint_in_shards_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    save_file({"model.norm.weight": torch.ones(3)}, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": EMBEDDING}, tmp_path / "b.safetensors")
    places = {"model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(read_head(tmp_path).weight_VD, EMBEDDING)


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="output projection"):
        read_head(write(tmp_path, {"model.norm.weight": torch.ones(3)}))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match="safetensors"):
        read_head(tmp_path)
