"""Rows and signals survive Arrow and Parquet bit for bit; views are true distributions."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_builder import full_logprobs, make_reject, make_row, make_signal, same_row, same_signal

from raystill.errors import DataError
from raystill.store.codec import (
    iter_table_rejects,
    iter_table_rows,
    list_scores,
    list_signals,
    rejects_to_table,
    rows_to_table,
    scores_to_table,
    view_signal,
)
from raystill.store.digest import score_digest
from raystill.store.records import ROW_SCHEMA, Score, ScoredIds, TeacherRow, TopKSignal
from raystill.store.writer import write_parquet

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
OPTIONAL = st.none() | TEXT


@st.composite
def signals(draw: st.DrawFn, num_tokens: int) -> TopKSignal:
    """Any bits, not only distributions: the codec must not care. K may be 0."""
    num_logprobs = draw(st.integers(0, 5))
    raw = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(raw)
    tail = rng.normal(size=num_tokens).astype(np.float32)
    tail[rng.random(num_tokens) < 0.3] = -np.inf
    return TopKSignal(
        rng.integers(0, 2**31 - 1, (num_tokens, num_logprobs), dtype=np.int32),
        rng.normal(scale=20, size=(num_tokens, num_logprobs)).astype(np.float16),
        rng.normal(size=num_tokens).astype(np.float32),
        tail,
    )


@st.composite
def rows(draw: st.DrawFn) -> TeacherRow:
    num_tokens = draw(st.integers(0, 4))
    ids = st.lists(st.integers(0, 2**31 - 1), min_size=num_tokens, max_size=num_tokens)
    return TeacherRow(
        key=draw(TEXT), prompt_id=draw(TEXT), split=draw(TEXT), source=draw(TEXT), messages=draw(TEXT),
        prompt_token_ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), max_size=4)), np.int32),
        completion=draw(TEXT), completion_token_ids=np.array(draw(ids), np.int32),
        finish_reason=draw(TEXT), flags=tuple(draw(st.lists(TEXT, max_size=3))), teacher_id=draw(TEXT),
        sample_index=draw(st.integers(0, 1000)), seconds=draw(st.floats(0, 100, width=32)),
        reasoning=draw(OPTIONAL), tool_calls=draw(OPTIONAL),
        cost_usd=draw(st.floats(0, 10)), signal=draw(st.none() | signals(num_tokens)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), max_size=5))
def test_rows_survive_parquet_bit_for_bit(originals: list[TeacherRow]) -> None:
    buffer = io.BytesIO()
    write_parquet(rows_to_table(originals), buffer)
    table = pq.read_table(io.BytesIO(buffer.getvalue()))
    assert table.schema.names == ROW_SCHEMA.names
    restored = list(iter_table_rows(table))
    assert len(restored) == len(originals)
    assert all(same_row(*pair) for pair in zip(originals, restored, strict=True))


def test_scores_and_rejects_survive() -> None:
    ids = ScoredIds(np.arange(4, dtype=np.int32), np.arange(3, dtype=np.int32))
    scores = [
        Score("a", make_signal(1, 3, 4), ids),
        Score("b", make_signal(2, 0, 4)),
        Score("c", make_signal(3, 5, 2)),
    ]
    table = scores_to_table(scores)
    assert table.column("key").to_pylist() == ["a", "b", "c"]
    found = list_scores(table)
    assert all(same_signal(s.signal, r.signal) for s, r in zip(scores, found, strict=True))
    assert [each.ids is None for each in found] == [False, True, True]
    assert found[0].ids is not None and found[0].ids.prompt_token_ids.tolist() == [0, 1, 2, 3]
    assert [score_digest(each) for each in found] == [score_digest(each) for each in scores]
    assert score_digest(scores[0]) != score_digest(Score("a", scores[0].signal))
    rejects = [make_reject(1), make_reject(2)]
    assert list(iter_table_rejects(rejects_to_table(rejects))) == rejects


def test_a_lone_surrogate_is_refused_and_shown() -> None:
    """I20."""
    row = make_row(1)
    broken = TeacherRow(**{**vars(row), "completion": "fine \ud800 not"})
    with pytest.raises(DataError, match="not valid Unicode"):
        rows_to_table([broken])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=8), st.integers(0, 7))
def test_neighbours_of_any_width_stay_apart(shapes: list[tuple[int, int] | None], skipped: int) -> None:
    originals = [
        replace(make_row(i, num_tokens=shape[0] if shape else 2), signal=shape and make_signal(i, *shape))
        for i, shape in enumerate(shapes)
    ]
    table = rows_to_table(originals).slice(skipped)  # as a filter or a limit leaves it
    restored = list(iter_table_rows(table))
    assert len(restored) == len(originals[skipped:])
    for original, row in zip(originals[skipped:], restored, strict=True):
        assert same_row(original, row)
        if row.signal is not None:
            row.signal.__post_init__()


def test_lists_that_do_not_fit_their_row_are_refused() -> None:
    table = scores_to_table([Score("a", make_signal(1, 3, 4))])
    index = table.schema.get_field_index("num_logprobs")
    with pytest.raises(DataError, match="3 x 5"):
        list_signals(table.set_column(index, "num_logprobs", [[5]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.integers(1, 50), st.data())
def test_a_view_is_the_teacher_with_a_larger_tail(
    seed: int, num_tokens: int, stored: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(1, stored))
    view, direct = (
        view_signal(make_signal(seed, num_tokens, stored), wanted),
        make_signal(seed, num_tokens, wanted),
    )
    assert np.array_equal(view.topk_ids_TK, direct.topk_ids_TK)
    assert np.array_equal(view.topk_logprobs_TK, direct.topk_logprobs_TK)
    assert view.tail_logprob_T.dtype == np.float32
    exact = np.sort(full_logprobs(seed, num_tokens), axis=1)[:, : full_logprobs(0, 1).shape[1] - wanted]
    tail = np.exp(exact).sum(axis=1)
    # Dropped entries are float16: relative error of each p is at most |logprob| * 2^-11, and they are < 20.
    np.testing.assert_allclose(np.exp(view.tail_logprob_T), tail, rtol=20 * 2**-11, atol=1e-6)


def test_a_view_of_a_view_is_the_direct_view() -> None:
    signal = make_signal(5, 8, 20)
    twice, once = view_signal(view_signal(signal, 10), 4), view_signal(signal, 4)
    np.testing.assert_allclose(twice.tail_logprob_T, once.tail_logprob_T, rtol=1e-5, atol=1e-6)
    assert view_signal(signal, 20) is signal


def test_a_view_without_a_stored_tail_takes_the_dropped_mass() -> None:
    signal = make_signal(5, 4, 50)  # the whole vocabulary: the tail is empty
    assert np.isneginf(signal.tail_logprob_T).all()
    view = view_signal(signal, 49)
    np.testing.assert_allclose(
        view.tail_logprob_T, signal.topk_logprobs_TK[:, 49].astype(np.float32), rtol=1e-5
    )


def test_more_than_is_stored_is_refused() -> None:
    with pytest.raises(DataError, match=r"5 logprobs per token are asked for, 4 are stored"):
        view_signal(make_signal(1, 3, 4), 5)
