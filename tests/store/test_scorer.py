"""Scores in other tokens than the rows', and the one scorer that a store has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_builder import build_store, make_row, make_signal

from raystill.errors import DataError
from raystill.store.content import content_digest
from raystill.store.diff import diff_stores
from raystill.store.reader import keys_to_score, load_rows
from raystill.store.records import Score, ScoredIds, TeacherRow
from raystill.store.repack import repack_store
from raystill.store.scorer import load_scorer, record_scorer, signal_identity
from raystill.store.store import TeacherStore
from raystill.store.verify import verify_store
from raystill.store.writer import PartWriter

NO_IDS = np.empty(0, np.int32)


def text_row(index: int) -> TeacherRow:
    row = make_row(index, num_tokens=0, num_logprobs=None)
    return replace(row, prompt_token_ids=NO_IDS, completion=f"answer {index}")


def own_ids(index: int, num_tokens: int) -> ScoredIds:
    """The ids that `make_signal` belongs to, after a prompt of two tokens."""
    completion = make_row(index, num_tokens=num_tokens).completion_token_ids
    return ScoredIds(np.array([index, 7], np.int32), completion)


@pytest.fixture
def scored(tmp_path: Path) -> TeacherStore:
    """Four answers in text, of which the first three are scored in two parts; one is empty."""
    rows = [text_row(index) for index in range(4)]
    empty = replace(make_row(4, num_tokens=0, num_logprobs=None), completion="")
    store = build_store(tmp_path / "store", [*rows, empty], num_partitions=1)
    assert keys_to_score(store, 0, 4) == {row.key for row in rows}
    with PartWriter(store) as writer:
        for group in (rows[:2], rows[2:]):
            scores = [
                Score(row.key, make_signal(rows.index(row), 5, 4), own_ids(rows.index(row), 5))
                for row in group
            ]
            writer.commit_scores(0, scores)
    return store


def test_rows_come_with_the_ids_that_their_signal_belongs_to(scored: TeacherStore) -> None:
    assert keys_to_score(scored, 0, 4) == set()
    rows = {row.prompt_id: row for row in load_rows(scored, with_signal=True)}
    assert len(rows) == 5
    for index in range(4):
        row = rows[text_row(index).prompt_id]
        assert row.completion == f"answer {index}"
        assert row.prompt_token_ids.tolist() == [index, 7]
        assert row.completion_token_ids.tolist() == own_ids(index, 5).completion_token_ids.tolist()
    assert all(len(row.completion_token_ids) == 0 for row in load_rows(scored))


def test_verify_repack_and_diff_know_the_ids(scored: TeacherStore, tmp_path: Path) -> None:
    report = verify_store(scored.path)
    assert report.ok and report.num_scores == 4
    before = content_digest(scored, ("rows", "scores"))
    assert repack_store(scored, rows_per_part=100).parts_after < 3
    assert content_digest(scored, ("rows", "scores")) == before
    assert verify_store(scored.path).ok
    other = build_store(tmp_path / "other", [text_row(index) for index in range(4)], num_partitions=1)
    foreign = ScoredIds(np.array([9, 9], np.int32), own_ids(0, 5).completion_token_ids)
    with PartWriter(other) as writer:
        writer.commit_scores(0, [Score(text_row(0).key, make_signal(0, 5, 4), foreign)])
    found = diff_stores(scored, other)
    assert (found.scores.different, found.scores.only_left) == (1, 3)


def test_a_score_must_fit_its_own_ids(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [text_row(0)], num_partitions=1)
    with PartWriter(store) as writer, pytest.raises(DataError, match="positions"):
        writer.commit_scores(0, [Score(text_row(0).key, make_signal(0, 5, 4), own_ids(0, 4))])


def test_a_store_has_one_scorer(scored: TeacherStore, tmp_path: Path) -> None:
    store = build_store(tmp_path / "new", [text_row(0)], num_partitions=1)
    record_scorer(store, store.identity)
    assert load_scorer(store) is None and signal_identity(store) == store.identity
    scorer = store.identity.model_copy(update={"teacher": "open", "tokenizer_sha256": "ab" * 32})
    record_scorer(store, scorer)
    record_scorer(store, scorer.model_copy(update={"engine": "another", "num_logprobs": 3}))
    assert load_scorer(store) == scorer == signal_identity(store)
    with pytest.raises(DataError, match=r"weights_sha256: '' -> 'ff'") as caught:
        record_scorer(store, scorer.model_copy(update={"weights_sha256": "ff"}))
    assert "teacher:" not in str(caught.value).replace("another teacher:", "")
    with pytest.raises(DataError, match="scored by another teacher"):
        record_scorer(store, store.identity)
    with pytest.raises(DataError, match="tokenizer_sha256"):  # scored by its own teacher before
        record_scorer(scored, scorer)
    assert verify_store(store.path).ok
