"""What a judge's replies say: a score per answer, or why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.config.grade import GradeSection
from raystill.run.publish import publish_file
from raystill.store.pending import iter_requested
from raystill.store.requests import load_requests
from raystill.store.store import TeacherStore

GRADE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("reply", pa.string(), nullable=False),
    ]
)
UNGRADED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("reply", pa.string()),
    ]
)


@dataclass(frozen=True)
class Grades:
    """`scores` by answer, `reasons` for those that have none; every answer that was asked about is in one."""

    scores: dict[str, float]
    reasons: dict[str, str]
    replies: dict[str, str]


def read_score(grade: GradeSection, reply: str) -> float | str:
    """The score that a reply gives, or the reason why it gives none."""
    found = list(re.finditer(grade.pattern, reply))
    if not found:
        return "no_score"
    try:
        score = float(found[-1][1])
    except (TypeError, ValueError):
        return "no_number"
    return score if math.isfinite(score) and grade.lowest <= score <= grade.highest else "out_of_range"


def collect_grades(
    grade: GradeSection, judged: TeacherStore, requests: Path, asked: Mapping[str, Sequence[str]]
) -> Grades:
    """Read the judge's stored replies to the questions `asked`; `requests` is the judge's own list.

    Raises DataError for a damaged part.
    """
    replies: dict[str, str] = {}
    question_of = {request.key: request.prompt_id for request in load_requests(requests)}
    for key, reply in _iter_replies(judged, requests):
        for answer in asked[question_of[key]]:
            replies[answer] = reply
    scores: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for answers in asked.values():
        for answer in answers:
            read = read_score(grade, replies[answer]) if answer in replies else "not_answered"
            if isinstance(read, str):
                reasons[answer] = read
            else:
                scores[answer] = read
    return Grades(scores, reasons, replies)


def save_grades(grades: Grades, scores: Path, ungraded: Path) -> None:
    """Publish both tables, sorted by key so that equal runs give equal bytes."""
    rows = [
        {"key": key, "score": score, "reply": grades.replies[key]}
        for key, score in sorted(grades.scores.items())
    ]
    left = [
        {"key": key, "reason": reason, "reply": grades.replies.get(key)}
        for key, reason in sorted(grades.reasons.items())
    ]
    for path, found, schema in ((scores, rows, GRADE_SCHEMA), (ungraded, left, UNGRADED_SCHEMA)):
        with publish_file(path) as temporary:
            pq.write_table(pa.Table.from_pylist(found, schema), temporary, compression="zstd")


def _iter_replies(judged: TeacherStore, requests: Path) -> Iterator[tuple[str, str]]:
    for table in iter_requested(judged, requests, ("key", "completion")):
        yield from zip(table.column("key").to_pylist(), table.column("completion").to_pylist(), strict=True)
