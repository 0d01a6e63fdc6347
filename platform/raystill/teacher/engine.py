"""What every teacher engine offers. Rows, not batches: a slow row never holds up the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from raystill.store.records import Int32Array, TopKSignal

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True)
class Sampling:
    """How one completion is drawn. `temperature` 0 is greedy; `top_k` 0 means no cutoff.

    `json_schema`: the JSON Schema (as text) that the completion is forced into, None for free text.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    json_schema: str | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One row's work. `seed` comes from the request key, never from a batch position.

    Engines that hold the model take `prompt_token_ids`; engines behind an API take `messages` (JSON).
    """

    key: str
    prompt_token_ids: Int32Array
    sampling: Sampling
    seed: int
    num_logprobs: int
    messages: str = ""


@dataclass(frozen=True)
class Usage:
    """What one answer used and cost, as the endpoint said it. Completion tokens include reasoning tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Generation:
    """One row's answer. `completion_token_ids` include the EOS that ended it, if one did.

    Engines behind an API answer with text: `completion` is set, and `completion_token_ids` may be empty.
    `reasoning` and `tool_calls` (JSON) are what the endpoint split off. `flags` join the row's.
    """

    key: str
    completion_token_ids: Int32Array
    finish_reason: FinishReason
    signal: TopKSignal | None
    seconds: float
    completion: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    usage: Usage | None = None
    flags: tuple[str, ...] = ()


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
