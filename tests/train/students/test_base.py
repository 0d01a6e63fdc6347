"""Starting from a checkpoint: its shape is its own, its context may be cut, an adapter is merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.config.models import StudentSection
from raystill.errors import ConfigError, DataError
from raystill.train.students.base import load_base_student, load_causal_lm, merge_adapter

IDS = torch.arange(16).unsqueeze(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, decoder: Any) -> str:
    directory = tmp_path_factory.mktemp("base") / "model"
    decoder("llama").save_pretrained(directory)
    return str(directory)


def section(checkpoint: str, **keys: Any) -> StudentSection:
    return StudentSection.model_validate({"base_model_name": checkpoint, "init": "base", **keys})


def test_keys_that_agree_are_accepted(checkpoint: str) -> None:
    keys = {"hidden_size": 32, "head_dim": 8, "rope_theta": 10000.0, "vocab_size": 96, "model_type": "llama"}
    model = load_base_student(section(checkpoint, **keys, tie_word_embeddings=False), "sdpa")
    assert model.config.max_position_embeddings == 64


@pytest.mark.parametrize(
    ("key", "value", "own"),
    [
        ("hidden_size", 64, 32),
        ("num_key_value_heads", 4, 2),
        ("head_dim", 16, 8),
        ("model_type", "qwen2", "llama"),
        ("vocab_size", 100, 96),
        ("rope_theta", 5.0, 10000.0),
        ("tie_word_embeddings", True, False),
    ],
)
def test_keys_that_disagree_are_refused(checkpoint: str, key: str, value: Any, own: Any) -> None:
    """I6."""
    with pytest.raises(ConfigError, match=f"{key} is {value}, the base has {own}"):
        load_base_student(section(checkpoint, **{key: value}), "sdpa")


def test_the_context_may_be_cut_and_not_stretched(checkpoint: str) -> None:
    model = load_base_student(section(checkpoint, max_position_embeddings=32), "sdpa")
    assert model.config.max_position_embeddings == 32
    with pytest.raises(ConfigError, match="has learnt 64"):
        load_base_student(section(checkpoint, max_position_embeddings=65), "sdpa")


def save_adapter(checkpoint: str, directory: Path) -> Any:
    """An adapter that PEFT saved, with weights that do something."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_causal_lm(checkpoint, "sdpa"), LoraConfig(r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(directory)
    return model.eval()


def test_an_adapter_from_elsewhere_is_merged_into_the_base(checkpoint: str, tmp_path: Path) -> None:
    adapted = save_adapter(checkpoint, tmp_path / "adapter")
    merged = merge_adapter(load_causal_lm(checkpoint, "sdpa"), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected, plain = adapted(input_ids=IDS).logits, load_causal_lm(checkpoint, "sdpa")(IDS).logits
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert type(merged).__name__ == "LlamaForCausalLM"


def test_what_is_no_adapter_of_this_base_is_refused(checkpoint: str, tmp_path: Path, decoder: Any) -> None:
    """I32: both sizes are in the message."""
    other = tmp_path / "other"
    decoder("llama", hidden_size=48, head_dim=12).save_pretrained(other)
    save_adapter(str(other), tmp_path / "adapter")
    with pytest.raises(DataError, match=r"can't be merged.*q_proj.*\[4, 48\].*\[4, 32\]") as caught:
        merge_adapter(load_causal_lm(checkpoint, "sdpa"), str(tmp_path / "adapter"))
    assert "student.base_model_name" in caught.value.problems[0].fix
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="adapter_config"):
        merge_adapter(load_causal_lm(checkpoint, "sdpa"), str(tmp_path / "empty"))


def test_a_base_of_nan_is_refused_with_the_weights_name(checkpoint: str, tmp_path: Path) -> None:
    """F22."""
    model = load_causal_lm(checkpoint, "sdpa")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match=r"weight 'model\.norm\.weight' is not finite"):
        load_base_student(section(str(tmp_path / "broken")), "sdpa")
