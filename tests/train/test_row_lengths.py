"""What a limit on the length of rows costs, said before the first step (I22)."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.train.row_lengths import RowLengths, measure_stored
from raystill.train.settings import resolve_settings


@pytest.mark.parametrize(("truncate", "share"), [(False, "50.0%"), (True, "30.0%")])
def test_what_is_lost_is_counted_in_completion_tokens(truncate: bool, share: str) -> None:
    """I22: with a histogram."""
    lengths = RowLengths(100, truncate=truncate)
    assert [lengths.add(40, 50), lengths.add(60, 100)] == [50, 40 if truncate else 0]
    lengths.add(500, 0)
    for _ in range(50):
        lengths.add(1, 1)
    (note,) = lengths.describe_loss()
    lost = {"50.0%": 100, "30.0%": 60}[share] / 200
    assert note.startswith(f"{lost:.1%} of the completion tokens don't fit into rows of 100 tokens")
    assert "rows by length: 1-64: 50, 65-128: 1, 129-256: 1, 257-512: 1; the longest 500;" in note


def test_a_share_below_half_a_percent_is_not_worth_a_word() -> None:
    """I22."""
    lengths = RowLengths(100, truncate=True)
    lengths.add(10, 91)
    assert lengths.describe_loss()
    for _ in range(10):
        lengths.add(10, 90)
    assert lengths.describe_loss() == ()


def test_the_stored_rows_of_a_stage_are_measured_without_a_tokenizer(world: Any, rows: Any) -> None:
    """I22."""
    short = world.config(training={"max_seq_len": 30})
    world.list_requests(world.paths(short))
    settings = resolve_settings(short, "distill")
    (note,) = measure_stored(short, world.paths(short), settings).describe_loss()
    trained = [row for row in rows if row.split == "train"]
    longest = max(len(row.prompt_token_ids) + len(row.completion_token_ids) for row in trained)
    assert f"rows of 30 tokens; rows by length: 1-64: {len(trained)}; the longest {longest};" in note
    roomy = world.config()
    settings = resolve_settings(roomy, "distill")
    assert measure_stored(roomy, world.paths(roomy), settings).describe_loss() == ()
    narrow = world.config(student={"max_position_embeddings": 24})
    settings = resolve_settings(narrow, "distill")
    assert "rows of 24 tokens" in measure_stored(narrow, world.paths(narrow), settings).describe_loss()[0]
