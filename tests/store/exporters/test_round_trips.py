"""import(export(store)) gives the same rows, within what the format and its codec can hold."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_builder import build_store, make_row

from raystill.store.exporters.formats import ExportFormat, export_store
from raystill.store.exporters.openai_batch import input_path
from raystill.store.importers.formats import ImportFormat, ImportRequest, import_files
from raystill.store.reader import load_rows
from raystill.store.records import TeacherRow
from raystill.store.store import TeacherStore

_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def round_trip(directory: Path, store: TeacherStore, name: ExportFormat) -> TeacherStore:
    """Export and import again."""
    path = directory / {"messages": "m.parquet", "distillkit": "dk"}.get(name, f"{name}.jsonl")
    done = export_store(store, name, path)
    imported: ImportFormat = name  # type: ignore[assignment]
    request = ImportRequest(
        imported,
        (path / "data_0.parquet" if name == "distillkit" else path,),
        directory / "again",
        "tiny",
        inputs=(input_path(path),) if name == "openai-batch" else (),
    )
    again, counts = import_files(request)
    assert (counts.num_read, counts.num_added, counts.num_rejected) == (done.num_rows, done.num_rows, 0)
    return again


def by_prompt(store: TeacherStore, with_signal: bool) -> dict[str, TeacherRow]:
    return {row.prompt_id: row for row in load_rows(store, with_signal=with_signal)}


def same_text(left: TeacherRow, right: TeacherRow) -> bool:
    names = ("completion", "reasoning", "tool_calls", "finish_reason", "split", "source", "sample_index")
    return json.loads(left.messages) == json.loads(right.messages) and all(
        getattr(left, name) == getattr(right, name) for name in names
    )


def same_ids(left: TeacherRow, right: TeacherRow) -> bool:
    return np.array_equal(left.prompt_token_ids, right.prompt_token_ids) and np.array_equal(
        left.completion_token_ids, right.completion_token_ids
    )


def assert_signals_close(left: TeacherRow, right: TeacherRow, exact: bool = True) -> None:
    assert left.signal is not None
    assert right.signal is not None
    if exact:
        # Equal logprobs may stand in either order.
        assert left.signal.topk_logprobs_TK.tobytes() == right.signal.topk_logprobs_TK.tobytes()
        assert left.signal.topk_ids_TK.tolist() == right.signal.topk_ids_TK.tolist()
    np.testing.assert_allclose(
        np.exp(left.signal.tail_logprob_T), np.exp(right.signal.tail_logprob_T), atol=2e-3
    )


@pytest.mark.parametrize("name", ["openai-batch", "axolotl"])
def test_text_ids_and_signals_come_back(tmp_path: Path, name: ExportFormat) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(12)])
    before, after = by_prompt(store, True), by_prompt(round_trip(tmp_path, store, name), True)
    assert before.keys() == after.keys()
    for prompt_id, row in before.items():
        assert same_text(row, after[prompt_id])
        assert same_ids(row, after[prompt_id])
        assert_signals_close(row, after[prompt_id])
        assert row.signal is not None
        np.testing.assert_array_equal(
            row.signal.sampled_logprob_T, after[prompt_id].signal.sampled_logprob_T  # type: ignore[union-attr]
        )  # fmt: skip


def test_messages_bring_the_text_back(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(12)])
    before, after = by_prompt(store, False), by_prompt(round_trip(tmp_path, store, "messages"), False)
    assert before.keys() == after.keys()
    assert all(same_text(row, after[prompt_id]) for prompt_id, row in before.items())
    assert all(len(row.completion_token_ids) == 0 for row in after.values())


def test_distillkit_brings_ids_and_signals_back(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(12)])
    after = {tuple(row.prompt_token_ids.tolist()): row for row in by_prompt(
        round_trip(tmp_path, store, "distillkit"), True).values()}  # fmt: skip
    for row in by_prompt(store, True).values():
        found = after[tuple(row.prompt_token_ids.tolist())]
        assert same_ids(row, found)
        assert_signals_close(row, found)
        assert found.messages == "[]"
        assert "ids_only" in found.flags


def test_a_wide_store_loses_no_more_than_is_reported(tmp_path: Path) -> None:
    rows = [make_row(i, num_tokens=9, num_logprobs=40) for i in range(6)]
    store = build_store(tmp_path / "store", rows)
    store = replace(store, identity=store.identity.model_copy(update={"num_logprobs": 40}))
    loss = export_store(store, "distillkit", tmp_path / "dk").codec_loss
    assert loss is not None
    assert 0.0 < loss.kl_mean < 0.05
    request = ImportRequest("distillkit", (tmp_path / "dk" / "data_0.parquet",), tmp_path / "again", "tiny")
    again, counts = import_files(request)
    assert counts.num_added == 6
    after = {tuple(row.prompt_token_ids.tolist()): row for row in by_prompt(again, True).values()}
    for row in rows:
        left, right = row.signal, after[tuple(row.prompt_token_ids.tolist())].signal
        assert left is not None
        assert right is not None
        for position in range(9):
            decoded = dict(
                zip(right.topk_ids_TK[position].tolist(), right.topk_logprobs_TK[position], strict=True)
            )
            for token, logprob in zip(
                left.topk_ids_TK[position].tolist(), left.topk_logprobs_TK[position], strict=True
            ):
                # A mass above 1 is scaled back on import, by no more than the tolerance for it.
                assert abs(float(decoded[token]) - float(logprob)) <= loss.max_abs_error + 0.06


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.tuples(st.integers(1, 5), _TEXT, _TEXT, st.none() | _TEXT), min_size=1, max_size=5),
    width=st.integers(1, 40),
    name=st.sampled_from(["openai-batch", "axolotl", "messages"]),
)
def test_any_text_and_any_width_survive(
    data: list[tuple[int, str, str, str | None]], width: int, name: ExportFormat
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        store = build_store(directory / "store", _rows(data, width), num_partitions=2)
        with_signal = name != "messages"
        before, after = (
            by_prompt(store, with_signal),
            by_prompt(round_trip(directory, store, name), with_signal),
        )
        assert before.keys() == after.keys()
        for prompt_id, row in before.items():
            assert same_text(row, after[prompt_id])
            if with_signal:
                assert same_ids(row, after[prompt_id])
                assert_signals_close(row, after[prompt_id], exact=width < 10)


def _rows(data: Iterable[tuple[int, str, str, str | None]], width: int) -> list[TeacherRow]:
    return [
        replace(
            make_row(seed, num_tokens=length, num_logprobs=width),
            messages=json.dumps([{"role": "user", "content": f"{seed} {question}"}], ensure_ascii=False),
            completion=answer,
            reasoning=reasoning,
        )
        for seed, (length, question, answer, reasoning) in enumerate(data)
    ]


@pytest.mark.parametrize("name", ["jsonl", "openai-batch", "axolotl"])
def test_equal_stores_give_equal_bytes(tmp_path: Path, name: ExportFormat) -> None:
    rows = [make_row(i) for i in range(10)]
    one = build_store(tmp_path / "one", rows, rows_per_part=2)
    two = build_store(tmp_path / "two", rows[::-1], rows_per_part=5)
    export_store(one, name, tmp_path / "1.jsonl")
    export_store(two, name, tmp_path / "2.jsonl")
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
