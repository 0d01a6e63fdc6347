"""Our batched greedy generation against transformers' own, and its independence of batching and padding."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from raystill.errors import DataError
from raystill.evaluate.generation import GreedySettings, generate_greedy

VOCAB = 300
EOS = frozenset(range(10))
SETTINGS = GreedySettings(max_new_tokens=24, eos_ids=EOS, pad_id=0, batch_size=7, context=64)


@pytest.fixture(scope="module")
def model(small_run_module: ModuleType) -> Any:
    return small_run_module.build_model(5, VOCAB)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 50, (23,), generator=generator).tolist()
    return [torch.randint(10, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def test_equals_transformers_generate(model: Any, prompts: list[list[int]]) -> None:
    ours = generate_greedy(model, prompts, SETTINGS)
    assert {entry.finish_reason for entry in ours} == {"stop", "length"}
    for prompt, entry in zip(prompts, ours, strict=True):
        input_ids = torch.tensor([prompt])
        theirs = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=min(24, 64 - len(prompt)),
            do_sample=False,
            eos_token_id=sorted(EOS),
            pad_token_id=0,
        )
        assert entry.token_ids == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_padding_and_batch_size_change_nothing(
    model: Any, prompts: list[list[int]], side: Any, batch_size: int
) -> None:
    expected = generate_greedy(model, prompts, replace(SETTINGS, batch_size=1))
    assert (
        generate_greedy(model, prompts, replace(SETTINGS, padding_side=side, batch_size=batch_size))
        == expected
    )


def test_the_eos_ends_a_row_and_is_kept(model: Any, prompts: list[list[int]]) -> None:
    stopped = [e for e in generate_greedy(model, prompts, SETTINGS) if e.finish_reason == "stop"]
    assert stopped
    for entry in stopped:
        assert entry.token_ids[-1] in EOS
        assert EOS.isdisjoint(entry.token_ids[:-1])


def test_prompts_without_room_get_nothing(model: Any) -> None:
    entries = generate_greedy(model, [[11] * 64, [11] * 70, [], [11] * 60], SETTINGS)
    assert [len(entry.token_ids) for entry in entries[:3]] == [0, 0, 0]
    assert 1 <= len(entries[3].token_ids) <= 4
    assert entries[0].finish_reason == "length"


def test_a_model_of_nan_is_refused(small_run_module: ModuleType) -> None:
    broken = small_run_module.build_model(5, VOCAB)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        generate_greedy(broken, [[11, 12]], SETTINGS)
