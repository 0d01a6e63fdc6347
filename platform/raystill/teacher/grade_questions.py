"""What a judge is asked: one question per distinct answer of the run, as a prompt table of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.config.grade import GradeSection
from raystill.run.publish import publish_file
from raystill.store.pending import iter_requested
from raystill.store.requests import load_requests
from raystill.store.store import TeacherStore
from raystill.teacher.sampling import EVAL_SPLIT
from raystill.text.prompt_row import PROMPT_SCHEMA
from raystill.text.prompt_table import iter_prompt_batches

SOURCE = "grade"
_COLUMNS = ("key", "messages", "completion", "tool_calls")
_NO_REFERENCE = "(none is given)"
_PLACES = re.compile(r"\{(conversation|answer|reference|rubric|lowest|highest)\}")
_TOKENS_PER_BYTE = 0.3


@dataclass
class Questions:
    """`asked` maps a question's id, the key of the first answer that it is about, to all answers it stands
    for; `empty` answers are not asked about."""

    asked: dict[str, list[str]] = field(default_factory=dict)
    empty: int = 0

    @property
    def num_answers(self) -> int:
        """Answers that will get a score."""
        return sum(map(len, self.asked.values()))


def write_questions(
    grade: GradeSection, answered: TeacherStore, requests: Path, prompt_table: Path, output: Path
) -> Questions:
    """Publish the questions about the run's training answers at `output`; equal ones stand there once.

    Memory: one part of the store, and a digest per answer. Raises DataError for a damaged part or table.
    """
    references = {
        prompt.id: prompt.reference for batch in iter_prompt_batches(prompt_table) for prompt in batch
    }
    wanted = {
        request.key: references.get(request.prompt_id)
        for request in load_requests(requests)
        if request.split != EVAL_SPLIT
    }
    questions, first_of = Questions(), dict[bytes, str]()
    with publish_file(output) as temporary, pq.ParquetWriter(temporary, PROMPT_SCHEMA) as writer:
        for table in iter_requested(answered, requests, _COLUMNS):
            rows = []
            for row in table.to_pylist():
                if row["key"] not in wanted:
                    continue
                if not (row["completion"].strip() or row["tool_calls"]):
                    questions.empty += 1
                    continue
                text = fill_template(grade, row, wanted[row["key"]])
                name = first_of.setdefault(hashlib.sha256(text.encode("utf-8")).digest(), row["key"])
                questions.asked.setdefault(name, []).append(row["key"])
                if name == row["key"]:
                    rows.append(_question(grade, name, text))
            writer.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA))
    return questions


def fill_template(grade: GradeSection, row: Mapping[str, Any], reference: str | None) -> str:
    """The judge's question about one stored row. What is filled in is never searched for places again."""
    values = {
        "conversation": "\n\n".join(_turns(json.loads(row["messages"]))),
        "answer": "\n".join(text for text in (row["completion"], row["tool_calls"]) if text),
        "reference": reference or _NO_REFERENCE,
        "rubric": grade.rubric,
        "lowest": f"{grade.lowest:g}",
        "highest": f"{grade.highest:g}",
    }
    return _PLACES.sub(lambda place: values[place[1]], grade.template)


def _turns(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content") or ""
        said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        calls = message.get("tool_calls")
        yield f"{message['role']}: {said}" + (f"\n{json.dumps(calls, ensure_ascii=False)}" if calls else "")


def _question(grade: GradeSection, name: str, text: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": grade.system}] if grade.system else []
    messages.append({"role": "user", "content": text})
    return {
        "id": name,
        "source": SOURCE,
        "split": "train",  # held-out prompts are asked greedily, whatever the judge's pipeline says
        "messages": json.dumps(messages, ensure_ascii=False),
        "task": "text",
        "reference": None,
        "num_tokens": round(len(text.encode("utf-8")) * _TOKENS_PER_BYTE),
        "sampling": json.dumps({"json_schema": _reply_schema(grade)}) if grade.structured else None,
    }


def _reply_schema(grade: GradeSection) -> dict[str, Any]:
    score = {"type": "number", "minimum": grade.lowest, "maximum": grade.highest}
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "score": score},
        "required": ["reason", "score"],
        "additionalProperties": False,
    }
