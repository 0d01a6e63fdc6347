"""Weights of prompt sources: they multiply the loss of a source's tokens, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raystill.errors import ConfigError
from raystill.losses.schedules import ScheduledTerms
from raystill.train.batches import Batch
from raystill.train.objective import Head, build_objective, require_weighted_sources, token_weights


def make_batch(sources: tuple[str, ...], counts: tuple[int, ...]) -> Batch:
    total = sum(counts)
    return Batch(
        input_ids_BT=torch.zeros(1, total, dtype=torch.long),
        loss_index_N=torch.arange(total),
        target_ids_N=torch.arange(total) % 7,
        teacher=None,
        num_real_tokens=total,
        row_sources=sources,
        row_num_targets=counts,
    )


def test_every_token_has_the_weight_of_its_row() -> None:
    batch = make_batch(("a", "b", "c"), (2, 3, 1))
    weights_N = token_weights(batch, {"b": 0.5, "c": 2.0})
    assert weights_N is not None and weights_N.tolist() == [1, 1, 0.5, 0.5, 0.5, 2]
    assert token_weights(batch, {}) is None


def test_the_gradient_is_the_weighted_sum_of_the_sources_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    batch = make_batch(("a", "b"), (2, 3))

    def gradient(weights: dict[str, float]) -> tuple[float, int, torch.Tensor]:
        head = weight_VD.clone().requires_grad_()
        loss = build_objective(ScheduledTerms(), source_weights=weights)(hidden_ND, Head(head, None), batch)
        loss.sum.backward()
        assert head.grad is not None
        return loss.sum.item(), loss.num_tokens, head.grad

    only_a, only_b = gradient({"b": 0.0}), gradient({"a": 0.0})
    mixed = gradient({"a": 0.25, "b": 3.0})
    assert mixed[0] == pytest.approx(0.25 * only_a[0] + 3 * only_b[0], rel=1e-12)
    torch.testing.assert_close(mixed[2], 0.25 * only_a[2] + 3 * only_b[2], rtol=1e-12, atol=1e-12)
    assert {only_a[1], only_b[1], mixed[1]} == {5}


def test_weights_of_one_change_nothing_and_others_do(world: Any) -> None:
    def train(name: str, weights: dict[str, float]) -> bytes:
        config = world.config(name, losses={"source_weights": weights})
        world.train(config)
        weights_file: bytes = world.weights(config)
        return weights_file

    plain = train("plain", {})
    assert train("one", {"test": 1.0}) == plain
    assert train("more", {"test": 2.0}) != plain


def test_a_source_that_no_row_has_is_refused_before_the_first_step(world: Any) -> None:
    config = world.config(losses={"source_weights": {"tests": 2.0}})
    with pytest.raises(ConfigError, match="no training row is from 'tests'"):
        world.train(config)
    assert not world.paths(config).training_metrics("distill").exists()


def test_weights_that_leave_nothing_are_refused() -> None:
    require_weighted_sources({"a": 0.0}, ("a", "b"))
    with pytest.raises(ConfigError, match="weight 0"):
        require_weighted_sources({"a": 0.0, "b": 0.0}, ("a", "b"))
