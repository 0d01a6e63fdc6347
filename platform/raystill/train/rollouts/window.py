"""The rollouts of the steps between two refreshes of the weights: made at once, used one step at a time.

A window is part of every checkpoint that falls inside it: the weights that it was made with are gone by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raystill.errors import DataError
from raystill.store.records import Int32Array
from raystill.train.batches import StepPlan, StepPlanner
from raystill.train.group import WorkerGroup
from raystill.train.rollouts.engine import RolloutEngine, RolloutRequest, rollout_seed

# A step and a row of the training set: no row comes twice in a step.
Place = tuple[int, int]


@dataclass(frozen=True)
class RolloutWindow:
    """Rollouts of the steps `start` to before `stop`, by step and row; rows without one keep their text."""

    start: int
    stop: int
    rollouts: Mapping[Place, Int32Array] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        places = sorted(self.rollouts)
        tokens = [self.rollouts[place] for place in places]
        flat = np.concatenate([np.zeros(0, np.int32), *tokens])
        return {
            "span": torch.tensor([self.start, self.stop]),
            "places": torch.tensor(places, dtype=torch.int64).reshape(-1, 2),
            "lengths": torch.tensor([len(part) for part in tokens], dtype=torch.int64),
            "tokens": torch.from_numpy(flat),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> RolloutWindow:
        """The window of a checkpoint. Raises DataError for one that doesn't fit together."""
        start, stop = tensors["span"].tolist()
        lengths = tensors["lengths"].tolist()
        if sum(lengths) != len(tensors["tokens"]) or len(lengths) != len(tensors["places"]):
            raise DataError("the checkpoint's rollouts don't fit together", fix="start again with --fresh")
        parts = np.split(tensors["tokens"].numpy().astype(np.int32), np.cumsum(lengths)[:-1])
        places = [(int(step), int(row)) for step, row in tensors["places"].tolist()]
        return RolloutWindow(int(start), int(stop), dict(zip(places, parts, strict=False)))


@dataclass(frozen=True)
class WindowMaker:
    """Plans and makes windows. Which rows are rollouts depends on (seed, step, row) alone."""

    planner: StepPlanner
    prompts: Sequence[Int32Array]
    group: WorkerGroup
    device: torch.device
    seed: int
    share: float
    max_new_tokens: int

    def make(self, start: int, stop: int, engine: RolloutEngine) -> RolloutWindow:
        """Let every worker make the rollouts of its own rows, and give all of them to all."""
        places: list[Place] = []
        own: list[int] = []
        for step in range(start, stop):
            for rank in range(self.group.size):
                chosen = [
                    (step, row) for row in rows_of(self.planner.plan(step, rank)) if self.chooses(step, row)
                ]
                own += range(len(places), len(places) + len(chosen)) if rank == self.group.rank else ()
                places += chosen
        requests = [self._request(*places[index]) for index in own]
        made = engine.generate(requests) if requests else []
        tokens = self._share_out(len(places), dict(zip(own, made, strict=True)))
        found = {place: part for place, part in zip(places, tokens, strict=True) if len(part)}
        return RolloutWindow(start, stop, found)

    def chooses(self, step: int, row: int) -> bool:
        """Whether the student writes this row itself at this step."""
        if self.share >= 1.0:
            return True
        return float(np.random.default_rng([self.seed, step, row, 1]).random()) < self.share

    def _request(self, step: int, row: int) -> RolloutRequest:
        return RolloutRequest(self.prompts[row], rollout_seed(self.seed, step, row))

    def _share_out(self, count: int, made: Mapping[int, Int32Array]) -> list[Int32Array]:
        # Every worker adds its rows to zeros, so the sum is everybody's: no objects cross, only numbers.
        table_RT = torch.zeros(count, self.max_new_tokens + 1, dtype=torch.int64)
        for index, part in made.items():
            table_RT[index, 0] = len(part)
            table_RT[index, 1 : 1 + len(part)] = torch.from_numpy(part.astype(np.int64))
        table = self.group.sum_(table_RT.to(self.device)).cpu().numpy().astype(np.int32)
        return [row[1 : 1 + row[0]] for row in table]


def rows_of(plan: StepPlan) -> Iterable[int]:
    """The rows of a worker's step, in order."""
    return (int(row) for rows in plan.micro_batches for row in rows)
