"""What a judge said of each row, read from a file: any judge that can write JSONL or Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.config.curate import JudgeScoresSection
from raystill.curate.candidate import Drop
from raystill.curate.facts import Fact
from raystill.errors import DataError


def load_judge_scores(judge: JudgeScoresSection, path: Path, facts: Sequence[Fact]) -> dict[str, float]:
    """Scores by key, from the file at `path`.

    Its rows name a `key`, or a `prompt_id` and (0 if missing) a `sample_index`.

    Raises DataError for a file that can't be read, for a row without a name or a number, and for rows that
    score one key twice.
    """
    names = {(fact.prompt_id, fact.sample_index): fact.key for fact in facts}
    known = set(names.values())
    scores: dict[str, float] = {}
    for number, row in enumerate(_iter_rows(path), 1):
        score = row.get(judge.column)
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise _wrong_row(
                path, number, f"{judge.column!r} is {json.dumps(score, default=str)}, not a number"
            )
        if row.get("key") is None and row.get("prompt_id") is None:
            raise _wrong_row(path, number, "it has neither `key` nor `prompt_id`")
        key = row.get("key") or names.get((row["prompt_id"], row.get("sample_index") or 0))
        if key not in known:
            continue  # a row of another run of the same store
        if scores.setdefault(key, float(score)) != float(score):
            raise _wrong_row(path, number, f"another row gives {key} another score")
    return scores


def find_badly_judged(
    facts: Sequence[Fact], scores: Mapping[str, float], judge: JudgeScoresSection
) -> dict[str, Drop]:
    """Keys below the threshold, and those without a score where that drops them.

    Raises DataError where a score is missing and must not be.
    """
    unscored = [fact.key for fact in facts if fact.key not in scores]
    if unscored and judge.missing == "error":
        raise DataError(
            f"{len(unscored)} rows have no judge score ({', '.join(unscored[:3])})",
            where=f"{judge.scores} (curate.judge.scores)" if judge.scores else "the stage grade",
            fix="score them (grade says in ungraded.parquet why it did not), or set curate.judge.missing to "
            "drop or keep",
        )
    drops = {key: Drop("not_judged") for key in unscored} if judge.missing == "drop" else {}
    if judge.min_score is not None:
        low = {fact.key: scores[fact.key] for fact in facts if fact.key in scores}
        drops |= {
            key: Drop("judge_score", f"{score:g}") for key, score in low.items() if score < judge.min_score
        }
    return drops


def _iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=4096):
                    yield from batch.to_pylist()
            return
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise _wrong_row(path, number, "it is not an object")
                yield row
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"the judge's scores can't be read: {str(error).splitlines()[0]}",
            where=str(path),
            fix="curate.judge.scores takes JSONL and Parquet",
        ) from error


def _wrong_row(path: Path, number: int, why: str) -> DataError:
    return DataError(
        f"a judge score can't be used: {why}", where=f"{path}:{number}", fix="correct the row, or remove it"
    )
