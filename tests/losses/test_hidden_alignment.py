from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from raystill.errors import ConfigError
from raystill.losses.hidden_alignment import (
    AlignmentType,
    LayerProjections,
    hidden_alignment,
    map_layers,
)

BOTH: list[AlignmentType] = ["mse", "cosine"]


def make_states(size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(7, size, generator=generator, dtype=torch.float64) for _ in range(2)]


def naive(student: Tensor, teacher: Tensor, kind: AlignmentType) -> Tensor:
    total = student.new_zeros(())
    for s, t in zip(student, teacher, strict=True):
        if kind == "cosine":
            total = total + 1 - (s @ t) / (s.norm() * t.norm())
            continue
        a, b = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in (s, t))
        total = total + ((a - b) ** 2).mean()
    return total


@pytest.mark.parametrize("kind", BOTH)
def test_equals_the_definition_and_its_gradients(kind: AlignmentType) -> None:
    students, teachers = make_states(4), make_states(6, seed=1)
    projections = LayerProjections(2, 4, 6).double()
    leaves = [x.requires_grad_() for x in students] + list(projections.parameters())
    loss = hidden_alignment(students, teachers, projections, kind)
    expected = sum(
        naive(projections.project(pair, s), t, kind)
        for pair, (s, t) in enumerate(zip(students, teachers, strict=True))
    )
    torch.testing.assert_close(loss.sum, expected / 2)
    assert loss.num_tokens == 7 and not loss.metrics["hidden"].requires_grad
    for ours, wanted in zip(
        torch.autograd.grad(loss.sum, leaves),
        torch.autograd.grad(expected / 2, leaves),  # type: ignore[arg-type]
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)
        assert ours.norm() > 0


@pytest.mark.parametrize("kind", BOTH)
def test_gradcheck(kind: AlignmentType) -> None:
    teachers, projections = make_states(6, seed=1), LayerProjections(2, 4, 6).double()

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return hidden_alignment([first, second], teachers, projections, kind).sum

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in make_states(4)])


@pytest.mark.parametrize("kind", BOTH)
def test_equal_models_are_at_rest(kind: AlignmentType) -> None:
    students = [x.requires_grad_() for x in make_states(5)]
    loss = hidden_alignment(
        students, [x.detach().clone() for x in students], LayerProjections(2, 5, 5).double(), kind
    )
    assert abs(loss.sum.item()) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss.sum, students))


@pytest.mark.parametrize("kind", BOTH)
def test_any_cut_into_batches_gives_the_same_sum_and_weights_scale_rows(kind: AlignmentType) -> None:
    students, teachers, projections = make_states(4), make_states(6, 1), LayerProjections(2, 4, 6).double()
    weights = torch.linspace(0, 2, 7, dtype=torch.float64)
    whole = hidden_alignment(students, teachers, projections, kind, weights)
    parts = [
        hidden_alignment(
            [x[a:b] for x in students], [x[a:b] for x in teachers], projections, kind, weights[a:b]
        ).sum
        for a, b in itertools.pairwise([0, 2, 3, 7])
    ]
    torch.testing.assert_close(whole.sum, torch.stack(parts).sum())
    alone = hidden_alignment([x[6:] for x in students], [x[6:] for x in teachers], projections, kind)
    last = hidden_alignment(
        [x[6:] for x in students], [x[6:] for x in teachers], projections, kind, weights[6:]
    )
    torch.testing.assert_close(last.sum, 2 * alone.sum)


def test_layers_are_paired_by_depth_or_as_given() -> None:
    assert map_layers(None, 3, 12) == [(1, 4), (2, 8), (3, 12)]
    assert map_layers(None, 4, 4) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert map_layers([(2, 9)], 3, 12) == [(2, 9)]


@pytest.mark.parametrize("given", [[(0, 1)], [(1, 13)], [(4, 1)], [(1, 2), (1, 3)]])
def test_layers_that_are_not_there_are_refused(given: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="layer"):
        map_layers(given, 3, 12)


def test_layers_of_two_models_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="layers"):
        hidden_alignment(make_states(4), make_states(4)[:1], LayerProjections(2, 4, 4).double(), "mse")
