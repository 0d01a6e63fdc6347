"""The prompt table: what is written is what is read, and anything else is refused by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.errors import DataError
from raystill.text.prompt_row import PROMPT_SCHEMA, Prompt
from raystill.text.prompt_table import iter_prompt_batches, load_prompts, save_prompts


def build_prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{index:03d}",
            source="här",
            split="eval" if index % 5 == 0 else "train",
            messages=[{"role": "user", "content": f"frage {index} 世界\n"}],
            task="exact" if index % 2 else "text",
            reference=None if index % 3 else "42",
            num_tokens=index,
        )
        for index in range(count)
    ]


def test_round_trip_and_split(tmp_path: Path) -> None:
    prompts = build_prompts(23)
    path = tmp_path / "prompts.parquet"
    save_prompts(path, prompts)
    assert load_prompts(path) == prompts
    assert load_prompts(path, split="eval") == [prompt for prompt in prompts if prompt.split == "eval"]
    batches = list(iter_prompt_batches(path, batch_size=4, split="train"))
    assert all(0 < len(batch) <= 4 for batch in batches)
    assert [p for batch in batches for p in batch] == load_prompts(path, split="train")
    assert [item.name for item in tmp_path.iterdir()] == ["prompts.parquet"]


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt table") as error:
        load_prompts(tmp_path / "prompts.parquet")
    assert "raystill prepare" in str(error.value)


def test_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), path)
    with pytest.raises(DataError, match="columns id, text; expected id, source, split"):
        load_prompts(path)


def test_cut_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    save_prompts(path, build_prompts(5))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="can't be read"):
        load_prompts(path)


def test_messages_that_are_not_json(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    row = {"id": "a", "source": "s", "split": "train", "messages": "{", "task": "text", "num_tokens": 1}
    pq.write_table(pa.Table.from_pylist([row], schema=PROMPT_SCHEMA), path)
    with pytest.raises(DataError, match="can't be read"):
        load_prompts(path)
