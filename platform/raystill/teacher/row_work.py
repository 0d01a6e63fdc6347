"""What a worker does with a row (complete its prompt, or score its completion), and how it commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raystill.store.identity import row_seed
from raystill.store.layout import Kind
from raystill.store.records import Int32Array, Reject, RejectStage, TeacherRow, TopKSignal
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter
from raystill.teacher.engine import (
    Generation,
    GenerationRequest,
    Sampling,
    ScoreRequest,
    TeacherEngine,
)
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import load_tokenizer

_IDS = pa.list_(pa.int32())
WORK_SCHEMAS: dict[str, pa.Schema] = {
    "generate": pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("prompt_id", pa.string()),
            pa.field("split", pa.string()),
            pa.field("source", pa.string()),
            pa.field("messages", pa.string()),
            pa.field("prompt_token_ids", _IDS),
            pa.field("flags", pa.list_(pa.string())),
        ]
    ),
    "score": pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("prompt_id", pa.string()),
            pa.field("prompt_token_ids", _IDS),
            pa.field("completion_token_ids", _IDS),
        ]
    ),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A row's result: its generation or its signal, and how many completion tokens that is."""

    row: Row
    result: Generation | TopKSignal
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

    async def run(self, engine: TeacherEngine, row: Row) -> Answer:
        """Do one row. Raises EngineRowError for a row that can't be done."""
        ...

    def commit(self, writer: PartWriter, partition: int, answers: Sequence[Answer]) -> None:
        """Commit finished rows of one partition as one part."""
        ...


@dataclass(frozen=True)
class GenerateWork:
    """Completes prompts. `sampling_by_split`: held-out prompts are drawn greedily, see `sampling_of`.

    Holds the tokenizer's place rather than the tokenizer: workers load it themselves.
    """

    tokenizer_directory: str
    teacher_id: str
    sampling_by_split: dict[str, Sampling]
    num_logprobs: int
    skip_special_tokens: bool
    clean_up_tokenization_spaces: bool
    trust_remote_code: bool

    @cached_property
    def _chat(self) -> ChatFormat:
        return ChatFormat(load_tokenizer(self.tokenizer_directory, trust_remote_code=self.trust_remote_code))

    @property
    def commits(self) -> Kind:
        """Rows."""
        return "rows"

    def prepare(self) -> None:
        """Load the tokenizer."""
        self._chat.decode([], skip_special_tokens=True)

    async def run(self, engine: TeacherEngine, row: Row) -> Answer:
        """Complete one prompt."""
        request = GenerationRequest(
            key=row["key"],
            prompt_token_ids=_ids(row["prompt_token_ids"]),
            sampling=self.sampling_by_split[row["split"]],
            seed=row_seed(row["key"]),
            num_logprobs=self.num_logprobs,
        )
        generation = await engine.generate(request)
        return Answer(row, generation, len(generation.completion_token_ids))

    def commit(self, writer: PartWriter, partition: int, answers: Sequence[Answer]) -> None:
        """Decode and commit; text is made here, off the engine's path."""
        writer.commit_rows(partition, [self._teacher_row(answer) for answer in answers])

    def _teacher_row(self, answer: Answer) -> TeacherRow:
        row, generation = answer.row, answer.result
        assert isinstance(generation, Generation)
        return TeacherRow(
            key=row["key"],
            prompt_id=row["prompt_id"],
            split=row["split"],
            source=row["source"],
            messages=row["messages"],
            prompt_token_ids=_ids(row["prompt_token_ids"]),
            completion=self._chat.decode(
                generation.completion_token_ids.tolist(),
                skip_special_tokens=self.skip_special_tokens,
                clean_up=self.clean_up_tokenization_spaces,
            ),
            completion_token_ids=generation.completion_token_ids,
            finish_reason=generation.finish_reason,
            flags=tuple(row["flags"]),
            teacher_id=self.teacher_id,
            sample_index=0,
            seconds=generation.seconds,
            signal=generation.signal,
        )


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
        scores: list[tuple[str, TopKSignal]] = []
        for answer in answers:
            assert isinstance(answer.result, TopKSignal)
            scores.append((answer.row["key"], answer.result))
        tokens = {answer.row["key"]: _ids(answer.row["completion_token_ids"]) for answer in answers}
        writer.commit_scores(partition, scores, completion_token_ids=tokens)


@dataclass(frozen=True)
class WorkOrder:
    """What a worker needs besides its engine."""

    store: TeacherStore
    work: GenerateWork | ScoreWork


def reject_of(row: Row, commits: Kind, code: str, reason: str) -> Reject:
    """The reject of a row whose work can't be done; engines retry nothing, so there was one attempt."""
    stage: RejectStage = "score" if commits == "scores" else "generate"
    return Reject(row["key"], row["prompt_id"], stage, code, reason, attempts=1)


def drop_committed(rows: list[Row], keys: Collection[str]) -> list[Row]:
    """The rows that are still to be done."""
    return [row for row in rows if row["key"] not in keys]


def _ids(values: Sequence[int]) -> Int32Array:
    return np.asarray(values, dtype=np.int32)
