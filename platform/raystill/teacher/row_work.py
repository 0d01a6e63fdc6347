"""What a worker does with a row (complete its prompt, or score its completion), and how it commits."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raystill.store.identity import row_seed
from raystill.store.layout import Kind
from raystill.store.records import (
    Int32Array,
    Reject,
    RejectStage,
    Score,
    ScoredIds,
    TeacherRow,
    TopKSignal,
)
from raystill.store.store import TeacherStore
from raystill.store.tier_records import TierSignal
from raystill.store.writer import PartWriter
from raystill.teacher.engine import (
    Generation,
    GenerationRequest,
    Sampling,
    ScoreRequest,
    TeacherEngine,
    Usage,
)
from raystill.teacher.errors import EngineRowError
from raystill.teacher.reasoning import (
    ReasoningMarkers,
    ReasoningMode,
    cut_signal,
    split_text,
    split_thoughts,
)
from raystill.teacher.sampling import row_sampling
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import load_tokenizer
from raystill.text.tool_schema import ToolSchema

INVALID_CALL_FLAG = "invalid_tool_call"

_IDS = pa.list_(pa.int32())
WORK_SCHEMAS: dict[str, pa.Schema] = {
    "generate": pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("prompt_id", pa.string()),
            pa.field("split", pa.string()),
            pa.field("sample_index", pa.int32()),
            pa.field("source", pa.string()),
            pa.field("messages", pa.string()),
            pa.field("prompt_token_ids", _IDS),
            pa.field("sampling", pa.string()),
            pa.field("flags", pa.list_(pa.string())),
        ]
    ),
    "score": pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("prompt_id", pa.string()),
            pa.field("prompt_token_ids", _IDS),
            pa.field("completion_token_ids", _IDS),
            # Whether these are the scorer's own tokens, which are stored with the score.
            pa.field("is_tokenised", pa.bool_()),
        ]
    ),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A row's result: its generation or its signal, and how many completion tokens that was."""

    row: Row
    result: Generation | TopKSignal | TierSignal
    num_tokens: int


class RowWork(Protocol):
    """One kind of work. Picklable by value: it is sent to every worker."""

    @property
    def commits(self) -> Kind:
        """The kind of part that the work commits; its keys are what need not be done again."""
        ...

    def prepare(self) -> None:
        """Load what commits will need, before the first row."""
        ...

    def size(self, row: Row) -> int:
        """How long the row may keep an engine busy, in tokens; only the order of these numbers matters."""
        ...

    async def run(self, engine: TeacherEngine, row: Row) -> Answer:
        """Do one row. Raises EngineRowError for a row that can't be done."""
        ...

    def commit(self, writer: PartWriter, partition: int, answers: Sequence[Answer]) -> None:
        """Commit finished rows of one partition as one part."""
        ...


@dataclass(frozen=True)
class GenerateWork:
    """Completes prompts. `sampling_by_split`: held-out prompts are drawn greedily, see `sampling_of`.

    Holds the tokenizer's place rather than the tokenizer: workers load it themselves; "" where answers are
    text. `markers` are None where the teacher writes no thoughts; `tool_schema` is what completions are
    checked against.
    """

    tokenizer_directory: str
    teacher_id: str
    sampling_by_split: dict[str, Sampling]
    num_logprobs: int
    skip_special_tokens: bool
    clean_up_tokenization_spaces: bool
    trust_remote_code: bool
    reasoning: ReasoningMode = "keep"
    markers: ReasoningMarkers | None = None
    tool_schema: ToolSchema | None = None

    @cached_property
    def _chat(self) -> ChatFormat:
        return ChatFormat(load_tokenizer(self.tokenizer_directory, trust_remote_code=self.trust_remote_code))

    @cached_property
    def _decode_whole(self) -> Callable[[Sequence[int]], str]:
        return lambda ids: self._chat.decode(ids, skip_special_tokens=False)

    @property
    def commits(self) -> Kind:
        """Rows."""
        return "rows"

    def prepare(self) -> None:
        """Load the tokenizer, where there is one."""
        if self.tokenizer_directory:
            self._chat.decode([], skip_special_tokens=True)

    def size(self, row: Row) -> int:
        """Prompt and longest completion."""
        return len(row["prompt_token_ids"]) + self._sampling(row).max_new_tokens

    async def run(self, engine: TeacherEngine, row: Row) -> Answer:
        """Complete one prompt, and split off the thoughts."""
        request = self.request_of(row)
        generation = await engine.generate(request)
        num_tokens = len(generation.completion_token_ids)
        return Answer(row, self._without_thoughts(request, generation), num_tokens)

    def request_of(self, row: Row) -> GenerationRequest:
        """What an engine is asked for this row."""
        return GenerationRequest(
            key=row["key"],
            prompt_token_ids=_ids(row["prompt_token_ids"]),
            sampling=self._sampling(row),
            seed=row_seed(row["key"]),
            num_logprobs=self.num_logprobs,
            messages=row["messages"],
        )

    def commit(self, writer: PartWriter, partition: int, answers: Sequence[Answer]) -> None:
        """Decode and commit; text is made here, off the engine's path."""
        writer.commit_rows(partition, [self.teacher_row(answer) for answer in answers])

    def _sampling(self, row: Row) -> Sampling:
        base = self.sampling_by_split[row["split"]]
        return row_sampling(base, row["split"], row["sampling"] and json.loads(row["sampling"]))

    def _without_thoughts(self, request: GenerationRequest, generation: Generation) -> Generation:
        """The answer alone, unless thoughts are to be trained on; see `raystill.teacher.reasoning`."""
        if self.reasoning == "train" or generation.reasoning is not None:
            return generation if self.reasoning != "drop" else replace(generation, reasoning=None)
        if generation.completion is not None:
            thoughts_and_answer = split_text(generation.completion)
            if thoughts_and_answer is None or len(generation.completion_token_ids):
                return generation
            text, answer = thoughts_and_answer
            return replace(
                generation, completion=answer, reasoning=text if self.reasoning == "keep" else None
            )
        ids = generation.completion_token_ids
        if self.markers is None or len(ids) == 0:
            return generation
        thoughts = split_thoughts(self.markers, request.prompt_token_ids, ids, self._decode_whole)
        if thoughts is None:
            return generation
        if not thoughts.finished or thoughts.num_tokens == len(ids):
            raise EngineRowError("reasoning_unfinished", f"no answer within {len(ids)} tokens of thoughts")
        signal = generation.signal
        return replace(
            generation,
            completion_token_ids=ids[thoughts.num_tokens :],
            signal=None if signal is None else cut_signal(signal, thoughts.num_tokens),
            reasoning=thoughts.text if self.reasoning == "keep" else None,
            usage=Usage(len(request.prompt_token_ids), len(ids), reasoning_tokens=thoughts.num_tokens),
        )

    def teacher_row(self, answer: Answer) -> TeacherRow:
        """What the store holds of an answer."""
        row, generation = answer.row, answer.result
        assert isinstance(generation, Generation)
        completion = generation.completion
        if completion is None:
            completion = self._chat.decode(
                generation.completion_token_ids.tolist(),
                skip_special_tokens=self.skip_special_tokens,
                clean_up=self.clean_up_tokenization_spaces,
            )
        usage = generation.usage
        return TeacherRow(
            key=row["key"],
            prompt_id=row["prompt_id"],
            split=row["split"],
            source=row["source"],
            messages=row["messages"],
            prompt_token_ids=_ids(row["prompt_token_ids"]),
            completion=completion,
            completion_token_ids=generation.completion_token_ids,
            finish_reason=generation.finish_reason,
            flags=(*row["flags"], *generation.flags, *self._call_flags(row, completion)),
            teacher_id=self.teacher_id,
            sample_index=row["sample_index"],
            seconds=generation.seconds,
            reasoning=generation.reasoning,
            tool_calls=generation.tool_calls,
            usage=None if usage is None else json.dumps(asdict(usage), sort_keys=True),
            cost_usd=0.0 if usage is None else usage.cost_usd,
            signal=generation.signal,
        )

    def _call_flags(self, row: Row, completion: str) -> tuple[str, ...]:
        """Whether a completion that was to be a call is one: a forced one may still be cut off."""
        schema = self.tool_schema
        if schema is None or self._sampling(row).json_schema != schema.text:
            return ()
        return (INVALID_CALL_FLAG,) if schema.call_problem(completion) else ()


@dataclass(frozen=True)
class ScoreWork:
    """Teacher-forces completions that are stored already."""

    num_logprobs: int

    @property
    def commits(self) -> Kind:
        """Scores."""
        return "scores"

    def prepare(self) -> None:
        """Nothing: signals are committed as they are."""

    def size(self, row: Row) -> int:
        """Prompt and completion."""
        return len(row["prompt_token_ids"]) + len(row["completion_token_ids"])

    async def run(self, engine: TeacherEngine, row: Row) -> Answer:
        """Score one completion."""
        request = ScoreRequest(
            key=row["key"],
            prompt_token_ids=_ids(row["prompt_token_ids"]),
            completion_token_ids=_ids(row["completion_token_ids"]),
            num_logprobs=self.num_logprobs,
        )
        return Answer(row, await engine.score(request), len(row["completion_token_ids"]))

    def commit(self, writer: PartWriter, partition: int, answers: Sequence[Answer]) -> None:
        """Commit signals, checked against their tokens."""
        scores: list[Score] = []
        tokens: dict[str, Int32Array] = {}
        for answer in answers:
            row = answer.row
            assert isinstance(answer.result, TopKSignal)
            prompt, completion = _ids(row["prompt_token_ids"]), _ids(row["completion_token_ids"])
            ids = ScoredIds(prompt, completion) if row["is_tokenised"] else None
            scores.append(Score(row["key"], answer.result, ids))
            tokens[row["key"]] = completion
        writer.commit_scores(partition, scores, completion_token_ids=tokens)


@dataclass(frozen=True)
class WorkOrder:
    """What a worker needs besides its engine. `notes` is where deaths of engines are written down."""

    store: TeacherStore
    work: RowWork
    notes: str


def drain_directory(order: WorkOrder) -> Path:
    """Where driver and workers of a job agree on its end."""
    return Path(order.notes).with_name("drain")


def reject_of(row: Row, commits: Kind, code: str, reason: str, attempts: int = 1) -> Reject:
    """The reject of a row whose work can't be done; `attempts` counts the engines that died of it."""
    stage: RejectStage = "generate" if commits == "rows" else "score"
    return Reject(row["key"], row["prompt_id"], stage, code, reason, attempts=attempts)


def drop_committed(rows: list[Row], keys: Collection[str]) -> list[Row]:
    """The rows that are still to be done."""
    return [row for row in rows if row["key"] not in keys]


def _ids(values: Sequence[int]) -> Int32Array:
    return np.asarray(values, dtype=np.int32)
