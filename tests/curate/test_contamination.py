"""Held-out texts in training rows: by n-grams, by equality of short prompts, from files; saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.curate.contamination import (
    ContaminationCheck,
    HeldOutText,
    build_index,
    iter_held_out,
    save_index,
)
from raystill.errors import DataError
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

HELD_OUT = "Seven brown bears walked slowly over the old wooden bridge towards the quiet village by the lake"


def make_check(folder: Path, *texts: str, ngram: int = 5, threshold: float = 0.5) -> ContaminationCheck:
    path = folder / "index.npz"
    save_index(path, build_index([HeldOutText(text, f"text {n}") for n, text in enumerate(texts)], ngram))
    return ContaminationCheck(path, threshold)


def test_a_copy_inside_a_longer_text_is_found(candidate: Any, tmp_path: Path) -> None:
    check = make_check(tmp_path, "Something else entirely, with no word in common with it at all", HELD_OUT)
    drop = check(candidate(f"Once upon a time: {HELD_OUT.upper()}, they say."))
    assert drop is not None and drop.detail == "100% of text 1"
    assert check(candidate("Once upon a time there was a bear.", prompt=f"Continue: {HELD_OUT}")) is not None
    assert (
        check(candidate("Seven brown bears walked slowly over the hill and were never seen again.")) is None
    )


@pytest.mark.parametrize(("threshold", "is_dropped"), [(0.3, True), (0.6, False)])
def test_the_threshold_is_the_share_of_the_held_out_text(
    candidate: Any, tmp_path: Path, threshold: float, is_dropped: bool
) -> None:
    half = " ".join(HELD_OUT.split()[:10])  # 6 of the 13 five-grams
    check = make_check(tmp_path, HELD_OUT, threshold=threshold)
    assert (check(candidate(half)) is not None) == is_dropped


def test_short_texts_must_equal_the_whole_prompt(candidate: Any, tmp_path: Path) -> None:
    check = make_check(tmp_path, "What is 3 + 4?", "42", ngram=13)
    assert check(candidate("7", prompt="what is  3 + 4?")) is not None
    assert check(candidate("7", prompt="What is 3 - 4?")) is None
    assert check(candidate("42", prompt="What is six times seven?")) is None


def test_texts_come_from_the_split_and_from_files(tmp_path: Path) -> None:
    table = tmp_path / "prompts.parquet"
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
    save_prompts(
        table,
        [
            Prompt("e", "web", "eval", turns, "exact", "Ann", 3),
            Prompt("t", "web", "train", turns, "exact", "Bob", 3),
        ],
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": "one", "choices": ["two", {"x": "three"}]}) + "\n\n")
    (tmp_path / "b.txt").write_text("four\n")
    pq.write_table(pa.table({"text": ["five"], "n": [1]}), tmp_path / "c.parquet")
    files = [tmp_path / name for name in ("a.jsonl", "b.txt", "c.parquet")]
    found = [text.text for text in iter_held_out(table, files)]
    assert found == ["Who?", "Ann", "one", "two", "three", "four", "five"]
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(DataError, match="held-out set can't be read"):
        list(iter_held_out(table, [tmp_path / "bad.jsonl"]))
