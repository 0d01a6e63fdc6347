"""Sampling with a cache gives what the model says of the whole text, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raystill.errors import DivergenceError
from raystill.train.rollouts.engine import RolloutRequest, RolloutSampling, rollout_seed
from raystill.train.rollouts.transformers_engine import TransformersRollouts, sample
from raystill.train.student import Student

V, EOS = 40, 3


def sampling(**over: Any) -> RolloutSampling:
    values = {
        "max_new_tokens": 6,
        "temperature": 1.0,
        "top_p": 1.0,
        "eos_ids": frozenset({EOS}),
        "context": 32,
        "batch_size": 3,
    }
    return RolloutSampling(**{**values, **over})


@pytest.fixture(scope="module")
def student() -> Student:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    return Student(model, model)


def requests() -> list[RolloutRequest]:
    generator = np.random.default_rng(0)
    return [
        RolloutRequest(generator.integers(4, V, size).astype(np.int32), rollout_seed(0, 0, row))
        for row, size in enumerate((5, 2, 9, 1, 31, 32, 40))
    ]


def test_rows_are_sampled_as_if_alone(student: Student) -> None:
    """Neither padding nor the rows that have ended change a row's own tokens."""
    engine = TransformersRollouts(student, sampling(), "float32")
    together = engine.generate(requests())
    alone = [engine.generate([request])[0] for request in requests()]
    assert [part.tolist() for part in together] == [part.tolist() for part in alone]
    assert [len(part) for part in together[4:]] == [1, 0, 0]  # the context is 32
    assert student.network.training
    for part in together[:4]:
        assert 1 <= len(part) <= 6
        assert EOS not in part[:-1]


def test_a_cold_rollout_is_the_most_likely_continuation(student: Student) -> None:
    request = requests()[0]
    found = TransformersRollouts(student, sampling(temperature=1e-4), "float32").generate([request])[0]
    ids = request.prompt_ids.tolist()
    student.network.eval()
    for token_id in found.tolist():
        with torch.no_grad():
            best = student.causal_lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
        assert int(best) == token_id
        ids.append(token_id)


def test_draws_follow_the_distribution_and_its_nucleus() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).expand(20000, 4)
    uniform = torch.from_numpy(np.random.default_rng(0).random(20000))
    for top_p, expected in (
        (1.0, logits[0].softmax(-1)),
        (0.7, torch.tensor([2.0, -99, 1.0, -99]).softmax(-1)),
    ):
        counts = torch.bincount(sample(logits, uniform, sampling(top_p=top_p)), minlength=4) / 20000
        assert torch.allclose(counts.float(), expected, atol=0.015)


def test_logits_that_are_not_finite_stop_the_run() -> None:
    with pytest.raises(DivergenceError):
        sample(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0.5]), sampling())
