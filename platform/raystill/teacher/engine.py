"""What every teacher engine offers. Rows, not batches: a slow row never holds up the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from raystill.store.records import Int32Array, TopKSignal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How one completion is drawn. `temperature` 0 is greedy; `top_k` 0 means no cutoff."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


@dataclass(frozen=True)
class GenerationRequest:
    """One row's work. `seed` comes from the request key, never from a batch position."""

    key: str
    prompt_token_ids: Int32Array
    sampling: Sampling
    seed: int
    num_logprobs: int


@dataclass(frozen=True)
class Generation:
    """One row's answer. `completion_token_ids` include the EOS that ended it, if one did."""

    key: str
    completion_token_ids: Int32Array
    finish_reason: FinishReason
    signal: TopKSignal | None
    seconds: float


@dataclass(frozen=True)
class ScoreRequest:
    """Teacher-force `completion_token_ids` after `prompt_token_ids` and return the distributions."""

    key: str
    prompt_token_ids: Int32Array
    completion_token_ids: Int32Array
    num_logprobs: int


class TeacherEngine(Protocol):
    """An engine holds one copy of the teacher. `generate` and `score` may run many at a time."""

    @property
    def rows_in_flight(self) -> int:
        """How many requests keep this engine busy."""
        ...

    async def generate(self, request: GenerationRequest) -> Generation:
        """Complete one prompt. Raises EngineRowError for a row that can't be done."""
        ...

    async def score(self, request: ScoreRequest) -> TopKSignal:
        """Distributions at every completion token. Raises EngineRowError for a row that can't be done."""
        ...

    def shutdown(self) -> None:
        """End every process the engine started."""
        ...
