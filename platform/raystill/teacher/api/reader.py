"""Reads answers by one run's rules, however they arrived: over HTTP one by one, or in a batch's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from raystill.store.records import Int32Array
from raystill.teacher.api.answers import read_answer
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.client import Answered
from raystill.teacher.api.outcomes import Failure
from raystill.teacher.api.token_logprobs import TokenMap
from raystill.teacher.engine import Generation, GenerationRequest, Usage
from raystill.teacher.reasoning import ReasoningMode

if TYPE_CHECKING:
    from raystill.text.chat import ChatFormat

_MESSAGE_TOKENS = 8


@dataclass(frozen=True)
class AnswerReader:
    """`chat` is the served model's, where it is known."""

    prices: Prices
    reasoning: ReasoningMode
    chat: ChatFormat | None = None

    def read(
        self, request: GenerationRequest, sent: Answered | Failure, reserved_usd: float
    ) -> Generation | Failure:
        """The row's generation with its cost; `reserved_usd` is what an answer without usage counts as."""
        if isinstance(sent, Failure):
            return replace(sent, usage=sent.usage and self.prices.priced(sent.usage))
        outcome = read_answer(
            request,
            sent,
            self.prices,
            reasoning=self.reasoning,
            tokens=self._tokens,
            end_token_ids=self.chat.eos_token_ids if self.chat is not None else (),
        )
        if isinstance(outcome, Failure):
            return outcome
        if outcome.usage is None:
            # Nobody says what it cost: the most that it can have is what counts.
            limit = request.sampling.max_new_tokens
            outcome = replace(outcome, usage=Usage(0, limit, cost_usd=reserved_usd))
        return self._tokenised(outcome)

    def worst_usd(self, request: GenerationRequest, body: bytes) -> float:
        """The most that sending `body` once can cost."""
        tokens = most_prompt_tokens(request, body)
        return self.prices.worst_case(tokens, request.sampling.max_new_tokens)

    @cached_property
    def _tokens(self) -> TokenMap | None:
        return TokenMap(self.chat.tokenizer) if self.chat is not None else None

    def _tokenised(self, generation: Generation) -> Generation:
        """Ids of the text, where the tokenizer is known and no logprobs came with ids of their own."""
        if self.chat is None or len(generation.completion_token_ids) or generation.tool_calls is not None:
            return generation
        ids = self.chat.tokenizer.encode(generation.completion or "", add_special_tokens=False)
        if generation.finish_reason == "stop":
            ids = [*ids, self.chat.turn_end_id]
        token_ids: Int32Array = np.asarray(ids, np.int32)
        return replace(generation, completion_token_ids=token_ids)


def most_prompt_tokens(request: GenerationRequest, body: bytes) -> int:
    """A token is at least one byte of the text, so this many at most; a tokenizer says exactly."""
    if len(request.prompt_token_ids):
        return len(request.prompt_token_ids) + _MESSAGE_TOKENS
    return len(body)
