from __future__ import annotations

from typing import Any

import pytest
import torch

from raystill.train.assembly import assemble
from raystill.train.flops import ModelSize, measure_peak, measure_size
from raystill.train.group import WorkerGroup

SUMS = {"real": 100.0, "tokens": 40.0, "squares": 1000.0}


def test_the_two_conventions_by_hand() -> None:
    full = ModelSize(1000, 1000, 500, True, 8, 2)
    assert full.count_6nd(SUMS) == 6 * 1500 * 100 + 12 * 2 * 8 * 1000
    assert full.count_needed(SUMS) == 6 * 1000 * 100 + 6 * 500 * 40 + 6 * 2 * 8 * 1000
    adapters = ModelSize(1010, 10, 500, False, 8, 2)
    assert adapters.count_needed(SUMS) == (4 * 1010 + 2 * 10) * 100 + 4 * 500 * 40 + 6 * 2 * 8 * 1000


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_weights_are_counted_by_what_they_do(empty_world: Any, world: Any, lora: Any) -> None:
    config = world.config(train={"distillation": {"peft": {"lora": lora}}})
    student = assemble(world.job(config), WorkerGroup()).state.student
    size = measure_size(student)
    head = student.head().weight_VD.numel()
    matrices = sum(p.numel() for p in student.network.parameters() if p.ndim >= 2)
    assert size.head_weights == head and size.head_trained == (lora is None)
    assert size.layer_weights == matrices - head  # tied: the embedding table is the head
    trained = sum(p.numel() for p in student.network.parameters() if p.requires_grad and p.ndim >= 2)
    assert size.layer_weights_trained == (trained if lora else trained - head)
    assert (size.attention_width, size.num_layers) == (32, 2)


def test_flops_agree_with_torchs_counter(world: Any) -> None:
    """Matrix products of a padded forward and backward pass, attention apart."""
    from torch.utils.flop_counter import FlopCounterMode

    run = assemble(world.job(world.config(training={"packing": "off"})), WorkerGroup())
    student = run.state.student
    ids = torch.arange(24).reshape(1, 24)
    index_N = torch.arange(24)
    with FlopCounterMode(display=False) as counter:
        hidden_ND = student.hidden_states(ids, index_N)
        (hidden_ND @ student.head().weight_VD.T).sum().backward()
    products = sum(
        count
        for operation, count in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)
    )
    size = measure_size(student)
    ours = size.count_needed({"real": 24.0, "tokens": 24.0, "squares": 0.0})
    assert products == pytest.approx(ours, rel=0.05)


def test_a_peak_is_a_rate() -> None:
    assert 1e8 < measure_peak(torch.device("cpu"), "float32") < 1e14
