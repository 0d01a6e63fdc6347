"""Checkpoints that can't or mustn't be loaded are refused before anything starts (I10, I12, I13)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raystill.config.schema import Config
from raystill.config.teacher import OpenModel
from raystill.errors import ConfigError, DataError, RemoteError
from raystill.teacher.model_files import locate_model


@pytest.fixture
def copied(teacher_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_dir, tmp_path / "model"))


def test_a_sound_checkpoint_is_described(teacher_dir: Path) -> None:
    files = locate_model(OpenModel(name=str(teacher_dir)))
    assert files.is_local
    assert files.context_length == 128
    assert files.vocab_size == 300
    assert files.weight_bytes > 100_000


@pytest.mark.parametrize("said", [10**30, 1e30, 0, None, "many"])
def test_a_number_that_is_no_context_is_not_believed(copied: Path, said: object) -> None:
    """I21: such sentinels stand where nobody knew a length."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"max_position_embeddings": said}))
    assert locate_model(OpenModel(name=str(copied))).context_length == 2048


def test_the_hash_follows_the_weights(copied: Path, teacher_dir: Path) -> None:
    before = locate_model(OpenModel(name=str(copied))).weights_sha256()
    assert before == locate_model(OpenModel(name=str(teacher_dir))).weights_sha256()
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert locate_model(OpenModel(name=str(copied))).weights_sha256() != before


def test_pickle_weights_are_refused(copied: Path) -> None:
    """I13."""
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(DataError, match="only pickle weights") as caught:
        locate_model(OpenModel(name=str(copied)))
    assert "save_pretrained" in caught.value.problems[0].fix


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", bytes(8) + b"{}"])
def test_damaged_weights_are_named(copied: Path, content: bytes) -> None:
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="not a whole safetensors file"):
        locate_model(OpenModel(name=str(copied)))


def test_a_missing_shard_is_named(copied: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="model-00002"):
        locate_model(OpenModel(name=str(copied)))


def test_a_missing_directory_is_a_config_error(tmp_path: Path) -> None:
    """I10."""
    with pytest.raises(ConfigError, match="no model directory") as caught:
        locate_model(OpenModel(name=str(tmp_path / "nothing")))
    assert caught.value.problems[0].where == "teacher.open.model.name"


def test_an_unknown_hub_id_is_a_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """I10."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError) as caught:
        locate_model(OpenModel(name="nobody/no-such-model"))
    assert "nobody/no-such-model" in caught.value.problems[0].where
    assert caught.value.problems[0].fix


def test_own_code_needs_consent(copied: Path) -> None:
    """I12."""
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="own Python code"):
        locate_model(OpenModel(name=str(copied)))
    assert locate_model(OpenModel(name=str(copied), trust_remote_code=True)).is_local


def test_config_is_needed(copied: Path, make_config: Callable[..., Config]) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        locate_model(OpenModel(name=str(copied)))
