"""Opening stores: created once, kept apart, refused with reasons."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from store_builder import IDENTITY, build_store, make_row

from raystill.errors import DataError, EnvironmentFault
from raystill.store.reader import load_rows
from raystill.store.store import load_store, open_store, start_new


def test_a_store_keeps_its_own_number_of_partitions(tmp_path: Path) -> None:
    open_store(tmp_path / "store", IDENTITY, 5)
    assert open_store(tmp_path / "store", IDENTITY, 9).num_partitions == 5
    assert load_store(tmp_path / "store").identity == IDENTITY


def test_another_teacher_is_refused_and_every_differing_field_is_named(tmp_path: Path) -> None:
    """F34: with both tokenizers' hashes."""
    build_store(tmp_path / "store", [make_row(1)], num_partitions=2)
    other = IDENTITY.model_copy(update={"tokenizer_sha256": "zzz", "dtype": "bfloat16"})
    with pytest.raises(DataError) as caught:
        open_store(tmp_path / "store", other, 2)
    message = str(caught.value)
    assert "tokenizer_sha256: 'a' -> 'zzz'" in message
    assert "dtype: 'float32' -> 'bfloat16'" in message
    assert "engine" not in message
    assert "resume" in message


def test_a_store_that_holds_nothing_takes_another_teacher(tmp_path: Path) -> None:
    open_store(tmp_path / "store", IDENTITY, 2)
    other = IDENTITY.model_copy(update={"teacher": "other"})
    assert open_store(tmp_path / "store", other, 5).identity == other
    with pytest.raises(DataError):
        open_store(tmp_path / "store", IDENTITY, 2, create=False)


def test_a_licence_note_may_be_reworded(tmp_path: Path) -> None:
    open_store(tmp_path / "store", IDENTITY, 2)
    open_store(tmp_path / "store", IDENTITY.model_copy(update={"licence_note": "see NOTICE"}), 2)


def test_a_missing_store_is_not_created_by_readers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no teacher store"):
        load_store(tmp_path / "store")
    with pytest.raises(DataError, match="no teacher store"):
        open_store(tmp_path / "store", IDENTITY, 2, create=False)
    assert not (tmp_path / "store").exists()


def test_foreign_files_and_a_file_in_the_way_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        open_store(tmp_path / "mine", IDENTITY, 2)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="is a file"):
        open_store(tmp_path / "file", IDENTITY, 2)
    with pytest.raises(EnvironmentFault):
        open_store(tmp_path / "file" / "below", IDENTITY, 2)
    assert sorted(item.name for item in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 1, "written_by": "raystill 0.0.9"},
            "version 1, written by raystill 0.0.9; .* reads 2",
        ),
        ({"format_version": 3, "written_by": "raystill 2.0"}, "version 3, written by raystill 2.0"),
        ({"num_partitions": 0}, "num_partitions is 0"),
        ({"num_partitions": "many"}, "wrong type"),
        ({"identity": {"teacher": "x"}}, "wrong type"),
    ],
)
def test_an_unreadable_store_json_says_why(tmp_path: Path, change: dict[str, object], message: str) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 2)
    facts = json.loads(store.layout.store_json.read_text(encoding="utf-8"))
    store.layout.store_json.write_text(json.dumps(facts | change), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_store(store.path)


def test_a_store_json_that_is_not_json_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 2)
    for text in ("", "[1]", "{", "\x00"):
        store.layout.store_json.write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            open_store(store.path, IDENTITY, 2)


def test_starting_anew_keeps_the_old_store_aside(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(5)]
    build_store(tmp_path / "store", rows)
    assert start_new(tmp_path / "nothing") is None
    first = start_new(tmp_path / "store")
    build_store(tmp_path / "store", rows[:1])
    second = start_new(tmp_path / "store")
    assert first is not None and second is not None and first != second
    assert len(load_rows(load_store(first))) == 5
    assert len(load_rows(load_store(second))) == 1
    assert not (tmp_path / "store").exists()


def test_many_openers_at_once_agree(tmp_path: Path) -> None:
    stores, barrier = [], threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        stores.append(open_store(tmp_path / "store", IDENTITY, number + 1))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    assert {store.num_partitions for store in stores} == {load_store(tmp_path / "store").num_partitions}
    assert [item.name for item in (tmp_path / "store").iterdir()] == ["store.json"]
