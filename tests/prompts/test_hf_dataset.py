"""HF datasets on disk, written by the real library and read without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raystill.errors import ConfigError, DataError, RemoteError
from raystill.prompts.hf_dataset import choose_split, iter_hub_dataset, iter_saved_dataset, list_saved_files
from raystill.prompts.rows import RawRow
from raystill.text.prompt_table import load_prompts

datasets = pytest.importorskip("datasets")

ROWS = [{"messages": [{"role": "user", "content": f"frage {index} 世界"}], "id": index} for index in range(7)]


def values(directory: Path) -> list[dict[str, Any]]:
    rows = list(iter_saved_dataset(directory))
    assert all(isinstance(row, RawRow) for row in rows)
    return [row.value for row in rows if isinstance(row, RawRow)]


def test_saved_dataset_in_several_files(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"), num_shards=3)
    assert len(list_saved_files(tmp_path / "set")) == 3
    assert values(tmp_path / "set") == ROWS


def test_filtered_dataset_keeps_only_its_rows(tmp_path: Path) -> None:
    kept = datasets.Dataset.from_list(ROWS).select([5, 1])
    kept.save_to_disk(str(tmp_path / "set"))
    assert values(tmp_path / "set") == [ROWS[5], ROWS[1]]


def test_dataset_dict_reads_train_only(tmp_path: Path, prepared: Any) -> None:
    splits = {"train": ROWS[:5], "test": ROWS[5:]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    saved.save_to_disk(str(tmp_path / "set"))
    prepared.prepare({"path": str(tmp_path / "set")})
    prompts = load_prompts(prepared.paths.prompt_table)
    assert {prompt.id for prompt in prompts} == {"0", "1", "2", "3", "4"}
    assert prompts[3].messages == ROWS[3]["messages"]


def test_which_split() -> None:
    assert choose_split(["test", "train"], "x") == "train"
    assert choose_split(["validation"], "x") == "validation"
    with pytest.raises(DataError, match="splits a, b"):
        choose_split(["a", "b"], "x")


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/hostname", "a\0b"])
def test_index_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    """I37."""
    (tmp_path / "outside.arrow").touch()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="outside its own directory"):
        list_saved_files(folder)


@pytest.mark.parametrize(
    "state", ["{", "[]", '{"_data_files": 3}', '{"_data_files": [{"filename": "no.arrow"}]}']
)
def test_broken_index(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError):
        list_saved_files(tmp_path)


def test_cut_arrow_file(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    (file,) = list_saved_files(tmp_path / "set")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="Arrow file can't be read"):
        values(tmp_path / "set")


def test_hub_rows_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """I10, I41: a data set that is gated, not there, or out of reach, with the way around the network."""
    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, revision: loaded)
    rows = list(iter_hub_dataset("org/set", "default"))
    assert [row.value for row in rows if isinstance(row, RawRow)] == ROWS

    for cause, kind in (
        (datasets.exceptions.DatasetNotFoundError("no such set"), RemoteError),
        (ConnectionError("no network"), RemoteError),
        (ValueError("BuilderConfig 'x' not found. Available: ['main']"), ConfigError),
    ):

        def refuse(name: str, subset: str, revision: str | None, cause: Exception = cause) -> None:
            raise cause

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(kind, match=str(cause)[:10]) as caught:
            list(iter_hub_dataset("org/set", "x"))
        assert "org/set (subset x)" in caught.value.problems[0].where
        for hint in ("hf auth login", "external_local_path") if kind is RemoteError else ("subsets",):
            assert hint in caught.value.problems[0].fix
