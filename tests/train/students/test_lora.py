"""Adapters: names that exist, ranks that mean something."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.config.training import LoraSection
from raystill.errors import ConfigError
from raystill.train.students.lora import attach_lora


def test_a_rank_above_every_layer_is_refused(decoder: Any) -> None:
    """I32."""
    with pytest.raises(ConfigError, match="rank 64 is above the full rank 32") as caught:
        attach_lora(decoder(), LoraSection(r=64), "train.sft.peft.lora")
    assert "train.sft.peft.lora.r" in str(caught.value)
    with pytest.raises(ConfigError, match="full rank 16"):
        attach_lora(decoder(), LoraSection(r=20, target_modules=["k_proj"]), "train.sft.peft.lora")


def test_a_rank_that_one_layer_can_use_is_accepted(decoder: Any) -> None:
    network = attach_lora(decoder(), LoraSection(r=32), "train.sft.peft.lora")
    assert any("lora_A" in name for name, _ in network.named_parameters())
    assert not any("lm_head" in name and "lora" in name for name, _ in network.named_parameters())
