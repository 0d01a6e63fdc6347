"""Rows of the teacher store and their Arrow schemas.

Shape letters: T completion tokens, K stored logprobs per token.

Position convention: entry t of every per-token column belongs to completion token t, and is the
distribution that token t was drawn from (given the prompt and completion tokens before t). Logprobs are
natural logs, normalised over the whole vocabulary, at temperature 1, whatever the sampling was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystill.errors import DataError

FORMAT_VERSION = 2

RejectStage = Literal["generate", "score"]
# The code of a reject that was released: its key is pending again.
RELEASED = "released"

Int32Array = npt.NDArray[np.int32]
Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TopKSignal:
    """A teacher's distribution at every completion token: its K best tokens and the mass of the rest.

    `topk_ids_TK` int32 and `topk_logprobs_TK` float16, best first; `sampled_logprob_T` float32, the logprob
    of the token that stands there; `tail_logprob_T` float32, the log of the mass outside the K (-inf: none).
    What is captured has eight or nine significant bits of these (`precision`); what is imported, all.
    """

    topk_ids_TK: Int32Array
    topk_logprobs_TK: Float16Array
    sampled_logprob_T: Float32Array
    tail_logprob_T: Float32Array

    def __post_init__(self) -> None:
        T, K = self.topk_ids_TK.shape
        if self.topk_logprobs_TK.shape != (T, K) or self.sampled_logprob_T.shape != (T,):
            raise DataError(f"signal shapes disagree: ids {T}x{K}, logprobs {self.topk_logprobs_TK.shape}")
        if self.tail_logprob_T.shape != (T,):
            raise DataError(f"tail has {self.tail_logprob_T.shape} entries for {T} tokens")

    @property
    def num_logprobs(self) -> int:
        """K."""
        return int(self.topk_ids_TK.shape[1])


@dataclass(frozen=True)
class ScoredIds:
    """The scorer's own tokens of a row that is known as text, or in another teacher's tokens."""

    prompt_token_ids: Int32Array
    completion_token_ids: Int32Array


@dataclass(frozen=True)
class Score:
    """What the score stage says of one row. `ids` None: the signal belongs to the row's own tokens."""

    key: str
    signal: TopKSignal
    ids: ScoredIds | None = None


@dataclass(frozen=True)
class TeacherRow:
    """One teacher output. `key` is the request key; `prompt_id` names the row of the prompt table.

    `tool_calls` and `usage` are JSON texts; `usage` is what the endpoint of a closed teacher said. Answers of
    such a teacher have text and no token ids, unless its tokenizer is known.
    """

    key: str
    prompt_id: str
    split: str
    source: str
    messages: str
    prompt_token_ids: Int32Array
    completion: str
    completion_token_ids: Int32Array
    finish_reason: str
    flags: tuple[str, ...]
    teacher_id: str
    sample_index: int
    seconds: float
    reasoning: str | None = None
    tool_calls: str | None = None
    usage: str | None = None
    cost_usd: float = 0.0
    signal: TopKSignal | None = None


@dataclass(frozen=True)
class Reject:
    """A request that failed for good. Never a row, never trained on.

    `stage` is the one that gave up on it: a stored row that `score` rejected stays a row without a signal.
    `cost_usd` is what its attempts were billed and `usage` what the endpoint said (JSON): money that is gone
    although there is no row.
    """

    key: str
    prompt_id: str
    stage: RejectStage
    code: str
    reason: str
    attempts: int
    cost_usd: float = 0.0
    usage: str | None = None


ROW_FIELDS: list[pa.Field] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("prompt_id", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("messages", pa.string(), nullable=False),
    pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("completion", pa.string(), nullable=False),
    pa.field("completion_token_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("reasoning", pa.string()),
    pa.field("tool_calls", pa.string()),
    pa.field("finish_reason", pa.string(), nullable=False),
    pa.field("flags", pa.list_(pa.string()), nullable=False),
    pa.field("num_prompt_tokens", pa.int32(), nullable=False),
    pa.field("num_completion_tokens", pa.int32(), nullable=False),
    pa.field("usage", pa.string()),
    pa.field("cost_usd", pa.float64(), nullable=False),
    pa.field("teacher_id", pa.string(), nullable=False),
    pa.field("sample_index", pa.int32(), nullable=False),
    pa.field("seconds", pa.float32(), nullable=False),
]

# Flat per-row lists of T*K and T entries: Arrow and every Parquet reader hold them without extension types.
SIGNAL_FIELDS: list[pa.Field] = [
    pa.field("num_logprobs", pa.int32()),
    pa.field("topk_ids", pa.list_(pa.int32())),
    pa.field("topk_logprobs", pa.list_(pa.float16())),
    pa.field("sampled_logprob", pa.list_(pa.float32())),
    pa.field("tail_logprob", pa.list_(pa.float32())),
]

ROW_SCHEMA = pa.schema([*ROW_FIELDS, *SIGNAL_FIELDS])
# The ids are null where a score belongs to the row's own tokens.
SCORE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32())),
        pa.field("completion_token_ids", pa.list_(pa.int32())),
        *SIGNAL_FIELDS,
    ]
)
REJECT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("cost_usd", pa.float64(), nullable=False),
        pa.field("usage", pa.string()),
    ]
)
