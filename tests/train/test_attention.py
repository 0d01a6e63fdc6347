"""A packed row is the row alone: the same loss and gradient to fp64 rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raystill.errors import ConfigError
from raystill.train.attention import choose_packing, enable_packing
from raystill.train.batches import collate
from raystill.train.examples import Example, ExampleSet
from raystill.train.settings import resolve_settings
from raystill.train.student import Student

_LENGTHS = (9, 2, 17, 5, 17)


def make_model(model_type: str, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **more,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")


def make_examples() -> ExampleSet:
    generator = np.random.default_rng(0)
    return ExampleSet([Example(generator.integers(0, 64, n).astype(np.int32), 1) for n in _LENGTHS])


def loss_and_gradient(student: Student, rows: list[int], packed: bool) -> tuple[float, list[torch.Tensor]]:
    student.network.zero_grad()
    batch = collate(make_examples(), np.array(rows), 0, torch.device("cpu"), packed=packed)
    hidden_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)
    logits_NV = hidden_ND @ student.head().weight_VD.T
    loss = torch.nn.functional.cross_entropy(logits_NV, batch.target_ids_N, reduction="sum")
    loss.backward()
    gradients = [p.grad.clone() for p in student.network.parameters() if p.grad is not None]
    return loss.item(), gradients


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("mistral", {"sliding_window": 6}),
        ("llama", {"gradient_checkpointing": True}),
    ],
)
def test_a_packed_row_gives_the_loss_and_gradient_it_gives_alone(
    model_type: str, more: dict[str, Any]
) -> None:
    checkpointing = more.pop("gradient_checkpointing", False) if more else False
    model = make_model(model_type, **more)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    student = Student(model, model)
    alone = [loss_and_gradient(student, [row], packed=False) for row in range(len(_LENGTHS))]
    enable_packing(model)
    loss, gradients = loss_and_gradient(student, list(range(len(_LENGTHS))), packed=True)
    assert loss == pytest.approx(sum(value for value, _ in alone), abs=1e-9)
    for together, *apart in zip(gradients, *(grads for _, grads in alone), strict=True):
        torch.testing.assert_close(together, torch.stack(apart).sum(0), rtol=1e-9, atol=1e-10)


def test_without_row_lengths_the_model_is_as_before() -> None:
    """Generation with left padding and a mask goes through the same attention function."""
    plain, packing = make_model("llama"), make_model("llama")
    enable_packing(packing)
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(
        packing(input_ids=ids, attention_mask=mask).logits, plain(input_ids=ids, attention_mask=mask).logits
    )


def test_a_model_that_mixes_rows_is_refused(empty_world: Any) -> None:
    model = make_model("llama")
    original = model.base_model.forward
    model.base_model.forward = lambda document_lengths=None, **inputs: original(**inputs)
    settings = resolve_settings(empty_world.config(training={"packing": "on"}), "sft")
    with pytest.raises(ConfigError, match="keep rows apart"):
        choose_packing(settings, model, [])
    assert not choose_packing(replace(settings, packing="auto"), model, [])
    assert model.config._attn_implementation == "sdpa"


def test_off_leaves_the_model_alone(empty_world: Any) -> None:
    model = make_model("llama")
    settings = resolve_settings(empty_world.config(training={"packing": "off"}), "sft")
    assert not choose_packing(settings, model, [])
    assert model.config._attn_implementation == "sdpa"
