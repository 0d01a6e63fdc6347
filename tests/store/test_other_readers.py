"""A store is plain Parquet: pandas, DuckDB, HF datasets and TRL read it, without raystill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_builder import build_store, make_row, make_signal

from raystill.store.exporters.messages import export_messages
from raystill.store.store import TeacherStore

NUM_ROWS = 12


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return build_store(tmp_path / "store", [make_row(i) for i in range(NUM_ROWS)], rows_per_part=3)


def reader(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is in the dev extra: sh scripts/setup.sh --dev")


def test_pandas(store: TeacherStore) -> None:
    pandas = reader("pandas")
    parts = sorted((store.path / "partitions").rglob("*.parquet"))
    frame = pandas.concat([pandas.read_parquet(part) for part in parts]).sort_values("prompt_id")
    assert frame["completion"].tolist() == [f"answer {i}" for i in range(NUM_ROWS)]
    first = frame.iloc[0]
    signal = make_signal(0, 6, 4)
    assert np.asarray(first["topk_ids"]).reshape(6, 4).tolist() == signal.topk_ids_TK.tolist()
    logprobs = np.asarray(first["topk_logprobs"], np.float16)
    assert logprobs.tobytes() == signal.topk_logprobs_TK.tobytes()
    assert json.loads(first["messages"])[0]["role"] == "user"


def test_duckdb(store: TeacherStore) -> None:
    duckdb = reader("duckdb")
    parts = f"{store.path}/partitions/*/*.parquet"
    with duckdb.connect() as connection:
        count, tokens = connection.execute(
            "select count(*), sum(num_completion_tokens) from read_parquet(?)", [parts]
        ).fetchone()
        width = connection.execute(
            "select distinct len(topk_ids) / num_completion_tokens from read_parquet(?)", [parts]
        ).fetchall()
        best = connection.execute(
            "select max(list_max(sampled_logprob)) from read_parquet(?)", [parts]
        ).fetchone()[0]
        first = connection.execute(
            "select topk_ids, topk_logprobs, tail_logprob from read_parquet(?) order by prompt_id", [parts]
        ).fetchone()
        every_column = connection.execute("select * from read_parquet(?)", [parts]).fetchall()
    signal = make_signal(0, 6, 4)
    for stored, expected in zip(
        first,
        (signal.topk_ids_TK, signal.topk_logprobs_TK, signal.tail_logprob_T),
        strict=True,
    ):
        assert stored == expected.ravel().tolist()
    assert len(every_column) == NUM_ROWS
    assert (count, tokens) == (NUM_ROWS, NUM_ROWS * 6)
    assert width == [(4.0,)]
    assert best <= 0.0


def test_hf_datasets(store: TeacherStore, tmp_path: Path) -> None:
    datasets = reader("datasets")
    rows = datasets.load_dataset(
        "parquet",
        data_files=f"{store.path}/partitions/*/*.parquet",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows.num_rows == NUM_ROWS
    found = {row["prompt_id"]: row for row in rows}
    assert found["prompt-00003"]["completion"] == "answer 3"
    assert len(found["prompt-00003"]["topk_logprobs"]) == 6 * 4


def test_trl_prepares_the_messages_export_as_it_is(store: TeacherStore, tmp_path: Path) -> None:
    datasets, trl = reader("datasets"), reader("trl")
    import transformers

    import raystill
    from raystill.text.chat import load_chat_format

    path = tmp_path / "messages.parquet"
    assert export_messages(store, path) == NUM_ROWS
    rows = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert trl.is_conversational(rows[0])
    chat = load_chat_format(str(Path(raystill.__file__).parent / "demo" / "teacher"))
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=len(chat.tokenizer), **size))
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows,
        processing_class=chat.tokenizer,
    )
    assert len(trainer.train_dataset) == NUM_ROWS
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        text = chat.render_text(row["messages"], add_generation_prompt=False)
        assert row["messages"][-1]["content"] in text
        assert prepared["input_ids"] == chat.tokenizer(text, add_special_tokens=False)["input_ids"]
