"""What a training stage leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raystill.errors import ConfigError
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import load_tokenizer, tokenizer_sha256
from raystill.train.output import save_initial_model


def make_model(model_type: str, vocab_size: int) -> Any:
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            model_type,
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        ),
        dtype=torch.float32,
    )


def test_the_saved_tokenizer_is_the_one_that_trained(chat: ChatFormat, tmp_path: Path) -> None:
    save_initial_model(make_model("llama", len(chat.tokenizer)), chat, tmp_path / "model")
    assert tokenizer_sha256(load_tokenizer(str(tmp_path / "model"))) == tokenizer_sha256(chat.tokenizer)


def test_a_family_that_changes_the_tokenizer_is_refused_before_training(
    chat: ChatFormat, tmp_path: Path
) -> None:
    """A `qwen2` directory loads any byte-level BPE as Qwen's own tokenizer class."""
    model = make_model("qwen2", len(chat.tokenizer))
    with pytest.raises(ConfigError, match="another family"):
        save_initial_model(model, chat, tmp_path / "model")
    assert not (tmp_path / "model").exists()
