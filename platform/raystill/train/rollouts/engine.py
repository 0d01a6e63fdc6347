"""What makes rollouts, and what one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raystill.store.records import Int32Array


@dataclass(frozen=True)
class RolloutRequest:
    """One rollout: a prompt in tokens, and the seed that alone decides its randomness."""

    prompt_ids: Int32Array
    seed: int


@dataclass(frozen=True)
class RolloutSampling:
    """How rollouts are sampled. `context` is the longest sequence in tokens."""

    max_new_tokens: int
    temperature: float
    top_p: float
    eos_ids: frozenset[int]
    context: int
    batch_size: int


class RolloutEngine(Protocol):
    """Samples completions from the student."""

    def refresh(self) -> None:
        """Take over the weights that the student has now."""
        ...

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Int32Array]:
        """Completion tokens per request, the EOS that ended one included; none where a prompt fills the
        context."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


def rollout_seed(seed: int, step: int, row: int) -> int:
    """The seed of a row's rollout at a step: the same in every attempt at that step."""
    return int(np.random.SeedSequence([seed, step, row]).generate_state(1, np.uint32)[0] >> 1)
