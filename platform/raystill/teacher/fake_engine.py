"""The fake engine: deterministic, instant, shipped. For rehearsals of a pipeline and fast tests.

Its distribution at position t is the same for every context of equal prompt: the token of rank r has
probability 2^-(r+1), ranks turned by a hash of the prompt and t. So scores agree with what it generated.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
import time

import numpy as np

from raystill.store.records import Int32Array, TopKSignal
from raystill.teacher.engine import FinishReason, Generation, GenerationRequest, ScoreRequest
from raystill.teacher.errors import EngineRowError

SECONDS_PER_ROW_VARIABLE = "RAYSTILL_FAKE_SECONDS_PER_ROW"
# A prompt that holds this text kills the engine's process, or hangs for ever.
POISON_VARIABLE = "RAYSTILL_FAKE_POISON"
HANG_VARIABLE = "RAYSTILL_FAKE_HANG"
# A file that gets a line, the row's key, for every completion that any engine is asked for.
ASKED_VARIABLE = "RAYSTILL_FAKE_ASKED"
# As many as anybody likes; 64 keeps the order of finishing realistic.
FAKE_ROWS_IN_FLIGHT = 64
_LOG_2 = math.log(2.0)


class FakeEngine:
    """`TeacherEngine` without a model. V is `vocab_size`; rows end with a stop token or at their limit."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        stop_token_ids: tuple[int, ...],
        *,
        rows_in_flight: int = FAKE_ROWS_IN_FLIGHT,
    ) -> None:
        self._rows_in_flight = rows_in_flight
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._stops = stop_token_ids
        self._seconds_per_row = float(os.environ.get(SECONDS_PER_ROW_VARIABLE, "0"))
        self._poison = os.environ.get(POISON_VARIABLE)
        self._hang = os.environ.get(HANG_VARIABLE)
        self._asked = os.environ.get(ASKED_VARIABLE)

    @property
    def rows_in_flight(self) -> int:
        """`teacher.open.pipeline.batch_size`, or FAKE_ROWS_IN_FLIGHT."""
        return self._rows_in_flight

    async def generate(self, request: GenerationRequest) -> Generation:
        """A completion that depends on the prompt and, above temperature 0, on the seed."""
        started = time.monotonic()
        self._note(request.key)
        room = self._context_length - len(request.prompt_token_ids)
        if room <= 0 or len(request.prompt_token_ids) == 0:
            code = "prompt_too_long" if room <= 0 else "prompt_empty"
            raise EngineRowError(
                code, f"{len(request.prompt_token_ids)} tokens in a context of {self._context_length}"
            )
        await asyncio.sleep(self._seconds_per_row)
        if self._poison and self._poison in request.messages:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._hang and self._hang in request.messages:
            await asyncio.Event().wait()
        limit = min(request.sampling.max_new_tokens, room)
        base = self._base(request.prompt_token_ids)
        seed = request.seed if request.sampling.temperature > 0.0 else 0
        wanted = 3 + (base + seed) % 24
        noise = np.random.default_rng(seed)
        ranks = np.zeros(limit, np.int64) if seed == 0 else noise.geometric(0.5, limit) - 1
        ids = (base + np.arange(limit) + ranks) % self._vocab_size
        while np.isin(ids, self._stops).any():
            ids = np.where(np.isin(ids, self._stops), (ids + 1) % self._vocab_size, ids)
        reason: FinishReason = "length"
        if wanted <= limit and self._stops:
            ids, reason = ids[:wanted], "stop"
            ids[-1] = self._stops[0]
        completion = ids.astype(np.int32)
        drawn = self._signal(base, completion, request.num_logprobs) if request.num_logprobs else None
        return Generation(request.key, completion, reason, drawn, time.monotonic() - started)

    async def score(self, request: ScoreRequest) -> TopKSignal:
        """The distributions that `generate` drew from, for any completion."""
        if len(request.prompt_token_ids) + len(request.completion_token_ids) > self._context_length:
            raise EngineRowError("too_long", f"more tokens than the context of {self._context_length}")
        await asyncio.sleep(self._seconds_per_row)
        base = self._base(request.prompt_token_ids)
        return self._signal(base, request.completion_token_ids, request.num_logprobs)

    def shutdown(self) -> None:
        """There is nothing to end."""

    def _note(self, key: str) -> None:
        if self._asked is None:
            return
        # One write, unbuffered: engines share the file, and are killed.
        with open(self._asked, "ab", buffering=0) as stream:
            stream.write(f"{key}\n".encode("ascii"))

    def _base(self, prompt_token_ids: Int32Array) -> int:
        digest = hashlib.sha256(np.asarray(prompt_token_ids, "<i4").tobytes()).digest()
        return int.from_bytes(digest[:4], "big")

    def _signal(self, base: int, completion: Int32Array, num_logprobs: int) -> TopKSignal:
        K, V = min(num_logprobs, self._vocab_size), self._vocab_size
        first_T = (base + np.arange(len(completion))) % V
        rank_T = (completion - first_T) % V
        topk_K = -_LOG_2 * (np.arange(K) + 1.0)
        return TopKSignal(
            topk_ids_TK=((first_T[:, None] + np.arange(K)) % V).astype(np.int32),
            topk_logprobs_TK=np.tile(topk_K, (len(completion), 1)).astype(np.float16),
            sampled_logprob_T=(-_LOG_2 * (rank_T + 1.0)).astype(np.float32),
            tail_logprob_T=np.full(len(completion), -_LOG_2 * K, np.float32),
        )
