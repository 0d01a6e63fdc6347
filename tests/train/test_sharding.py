"""Whether a model is cut among workers, and what must stay as it was where it isn't.

That training with a cut model ends where one worker ends is in `test_group`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raystill.train.settings import resolve_settings
from raystill.train.sharding import choose_parallelism, is_sharded, make_whole

GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "workers", "gpu_bytes", "expected"),
    [
        ("auto", 1, GIB, "ddp"),
        ("fsdp", 1, None, "ddp"),
        ("fsdp", 2, None, "fsdp"),
        ("ddp", 2, GIB, "ddp"),
        ("auto", 2, None, "ddp"),
        ("auto", 2, 30 * GIB, "ddp"),
        ("auto", 2, 24 * GIB, "fsdp"),
    ],
)
def test_auto_cuts_what_would_fill_a_gpu(
    empty_world: Any, asked: Any, workers: int, gpu_bytes: int | None, expected: str
) -> None:
    """A billion parameters that train take 16 GB with their gradients and moments."""
    settings = resolve_settings(empty_world.config(), "distill")
    settings = replace(settings, parallelism=asked)
    assert choose_parallelism(settings, workers, trained=10**9, frozen=0, gpu_bytes=gpu_bytes) == expected


def test_a_model_that_is_not_cut_is_left_alone() -> None:
    network = torch.nn.Linear(2, 2)
    weight = network.weight
    assert not is_sharded(network)
    make_whole(network)
    assert torch.equal(network.weight, weight)


def test_recomputing_activations_changes_no_bit(world: Any) -> None:
    plain = world.config("plain", train={"distillation": {"peft": {"lora": {"r": 4, "lora_dropout": 0.1}}}})
    again = world.config(
        "again",
        train={"distillation": {"peft": {"lora": {"r": 4, "lora_dropout": 0.1}}}},
        training={"gradient_checkpointing": True},
    )
    world.train(plain)
    world.train(again)
    assert world.weights(plain) == world.weights(again)
