"""Hidden-state alignment: chosen layers of the student learn to say what layers of a teacher say.

Shape letters: N rows (positions), S the student's hidden size, H the teacher's, L pairs of layers.

Each student state goes through a learned projection into the teacher's size; both sides are then normalised
without parameters, so that neither can win by scale. Projections train with the student and are thrown away
with the teacher: no exported model has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raystill.errors import ConfigError
from raystill.losses.loss import Loss

AlignmentType = Literal["mse", "cosine"]
# Student layer, teacher layer, both counted from 1.
LayerMap = Sequence[tuple[int, int]]


class LayerProjections(nn.Module):
    """One linear map per pair of layers, from the student's hidden size to the teacher's.

    Where the sizes are equal they start as the identity, so that equal models are at rest.
    """

    def __init__(self, num_pairs: int, student_size: int, teacher_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(student_size, teacher_size, bias=False) for _ in range(num_pairs)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.eye_(layer.weight) if student_size == teacher_size else nn.init.orthogonal_(layer.weight)

    def project(self, pair: int, state_NS: Tensor) -> Tensor:
        """The states of one pair's student layer in the teacher's size. [N, H]."""
        projected: Tensor = self.layers[pair](state_NS)
        return projected


def map_layers(given: LayerMap | None, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """The pairs of layers, counted from 1: as given, else every student layer at the same relative depth.

    Raises ConfigError for a layer that isn't there, or a student layer with two teachers.
    """
    if given is None:
        return [
            (layer, -(-layer * teacher_layers // student_layers)) for layer in range(1, student_layers + 1)
        ]
    pairs = [(student, teacher) for student, teacher in given]
    wrong = [
        pair for pair in pairs if not (1 <= pair[0] <= student_layers and 1 <= pair[1] <= teacher_layers)
    ]
    if wrong or len({student for student, _ in pairs}) != len(pairs):
        raise ConfigError(
            f"layer pairs {wrong or pairs} don't fit {student_layers} student and {teacher_layers} teacher "
            "layers, each student layer at most once",
            where="losses.hidden.layer_map",
            fix="use layers that both models have, counted from 1, or unset it for a proportional map",
        )
    return pairs


def hidden_alignment(
    student_states: Sequence[Tensor],
    teacher_states: Sequence[Tensor],
    projections: LayerProjections,
    kind: AlignmentType,
    weights_N: Tensor | None = None,
) -> Loss:
    """Sum over rows of the mean over pairs of the distance between normalised states.

    `student_states` are L tensors [N, S], `teacher_states` L tensors [N, H] of the same positions, in the
    pairs' order; no gradient flows into the teacher. mse: the mean square difference of layer-normalised
    states, 2 (1 - correlation). cosine: 1 - cosine. Computed in float32 (float64 stays). Metric: `hidden`.
    """
    if not student_states or len(student_states) != len(teacher_states):
        raise ValueError(f"{len(student_states)} student layers for {len(teacher_states)} teacher layers")
    distances = [
        _distance(projections.project(pair, student), teacher.detach(), kind)
        for pair, (student, teacher) in enumerate(zip(student_states, teacher_states, strict=True))
    ]
    distance_N = torch.stack(distances).mean(dim=0)
    raw = distance_N.sum()
    total = raw if weights_N is None else (distance_N * weights_N).sum()
    return Loss(total, int(distance_N.shape[0]), {"hidden": raw.detach()})


def _distance(student_NH: Tensor, teacher_NH: Tensor, kind: AlignmentType) -> Tensor:
    dtype = torch.promote_types(student_NH.dtype, torch.float32)
    student_NH, teacher_NH = student_NH.to(dtype), teacher_NH.to(dtype)
    if kind == "cosine":
        return 1.0 - torch.cosine_similarity(student_NH, teacher_NH, dim=-1)
    size = student_NH.shape[-1:]
    difference_NH = nn.functional.layer_norm(student_NH, size) - nn.functional.layer_norm(teacher_NH, size)
    return difference_NH.square().mean(dim=-1)
