"""Which files a source means, and what identifies them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.errors import ConfigError, DataError, EnvironmentFault
from raystill.prompts.rows import BadRow, RawRow
from raystill.prompts.sources import (
    Source,
    check_source,
    fingerprint_sources,
    iter_rows,
    list_files,
    list_sources,
    resolve_format,
)

Write = Callable[..., Path]


def source(path: Path | str, **settings: Any) -> Source:
    return Source(
        **{
            "config_key": "prompts.sources[0]",
            "label": "x",
            "path": str(path),
            "format": "auto",
            "shape": "auto",
            **settings,
        }
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.NDJSON", "jsonl"),
        ("a.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.tsv", "csv"),
    ],
)
def test_format_goes_by_the_name(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    assert resolve_format(source(tmp_path / name)) == kind


def test_folder_lists_data_files_by_path_without_metadata(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.csv", "a/dataset_info.json", ".cache/x.jsonl", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(source(tmp_path))] == [
        "a/z.csv",
        "b.jsonl",
    ]


def test_folder_of_python_files_hints_at_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    with pytest.raises(DataError, match="holds no") as error:
        list_files(source(tmp_path))
    assert "python_source" in str(error.value)


def test_nul_in_a_path() -> None:
    """I37."""
    with pytest.raises(ConfigError, match="NUL") as error:
        check_source(source("a\0b"), Path("runs/x"))
    assert error.value.exit_code == 2


def test_datasets_come_first_with_key_label_and_subset(prepared: Any, tmp_path: Path) -> None:
    (tmp_path / "local" / "python").mkdir(parents=True)
    config = prepared.config(
        {"path": "later.jsonl"},
        datasets=[
            {"name": "org/set", "key": "question", "subset": "main"},
            {"name": "mine", "key": "q", "subset": "python", "external_local_path": str(tmp_path / "local")},
        ],
    )
    hub, local, file = list_sources(config)
    assert (hub.format, hub.path, hub.key, hub.subset) == ("hub", "org/set", "question", "main")
    assert local.location == tmp_path / "local" / "python"
    assert (local.label, local.shape) == ("mine", "instruction")
    assert (file.label, file.config_key) == ("later.jsonl", "prompts.sources[0]")


def test_hub_names_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvironmentFault, match="needs the package") as error:
        list(iter_rows(source("org/set", format="hub")))
    assert error.value.exit_code == 4
    assert "pip install 'raystill[hub-data]'" in str(error.value)


def test_fingerprints_follow_content_not_time(prepared: Any, write_lines: Write, tmp_path: Path) -> None:
    path = write_lines('{"prompt": "x"}')
    config = prepared.config({"path": str(path)}, {"path": str(tmp_path / "gone.jsonl")})
    before = fingerprint_sources(config)
    assert list(before) == [str(path)]
    path.touch()
    assert fingerprint_sources(config) == before
    path.write_text('{"prompt": "y"}\n')
    assert fingerprint_sources(config) != before


def test_fingerprint_of_a_folder_covers_names_and_content(prepared: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text("1")
    config = prepared.config({"path": str(folder)})
    seen = [fingerprint_sources(config)[str(folder)]]
    (folder / "notes.md").write_text("not data")
    assert fingerprint_sources(config)[str(folder)] == seen[0]
    (folder / "a.jsonl").rename(folder / "b.jsonl")
    seen.append(fingerprint_sources(config)[str(folder)])
    (folder / "b.jsonl").write_text("2")
    seen.append(fingerprint_sources(config)[str(folder)])
    assert len(set(seen)) == 3


def test_broken_array_is_refused_whole(write_lines: Write) -> None:
    """I15."""
    path = write_lines('[{"prompt": "x"},', "]", name="array.json")
    with pytest.raises(DataError, match="JSON array that doesn't parse: trailing comma"):
        list(iter_rows(source(path)))


def test_array_rows_are_numbered(write_lines: Write) -> None:
    rows = list(iter_rows(source(write_lines('[{"a": 1}, 7]', name="array.json"))))
    assert isinstance(rows[0], RawRow)
    assert isinstance(rows[1], BadRow)
    assert rows[1].where.endswith("array.json[1]")


def test_csv_rows_that_do_not_fit(write_lines: Write) -> None:
    """I15."""
    path = write_lines(
        "id,prompt", "1,ok", "2", "3,a,b", b"4,\xff", '5,"two\nlines"', "", "6,last", name="x.csv"
    )
    rows = list(iter_rows(source(path)))
    bad = [(row.where.rpartition(":")[2], row.code) for row in rows if isinstance(row, BadRow)]
    assert bad == [("3", "csv"), ("4", "csv"), ("5", "utf8")]
    good = [row.value for row in rows if isinstance(row, RawRow)]
    assert good == [
        {"id": "1", "prompt": "ok"},
        {"id": "5", "prompt": "two\nlines"},
        {"id": "6", "prompt": "last"},
    ]


def test_parquet_row_with_invalid_utf8_is_bad_alone(tmp_path: Path) -> None:
    """I20."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    binary = pa.array([b"good", b"\xff", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "x.parquet")
    rows = list(iter_rows(source(tmp_path / "x.parquet")))
    assert [type(row) for row in rows] == [RawRow, BadRow, RawRow]
    assert isinstance(rows[1], BadRow)
    assert (rows[1].where.rpartition("x.parquet")[2], rows[1].code) == ("[1]", "utf8")


def test_deeply_nested_json_is_a_bad_row(write_lines: Write) -> None:
    (row,) = iter_rows(source(write_lines('{"a":' * 100_000)))
    assert isinstance(row, BadRow)
    assert "nested too deeply" in row.reason
    assert len(row.excerpt) <= 80


def test_excerpts_are_printable(write_lines: Write) -> None:
    (row,) = iter_rows(source(write_lines("\x1b[31mred\x1b[0m")))
    assert isinstance(row, BadRow)
    assert "\x1b" not in str(row)
    assert json.dumps(row.excerpt)
