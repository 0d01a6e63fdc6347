"""What people see of batches that a provider works on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raystill.cli.main import main
from raystill.store.identity import StoreIdentity
from raystill.store.store import open_store
from raystill.teacher.batch_api.book import BatchBook
from raystill.teacher.batch_api.overview import list_live_batches


def row(index: int) -> dict[str, Any]:
    return {"key": f"{index:032x}", "prompt_id": f"p{index}", "split": "train", "sample_index": 0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    identity = StoreIdentity(
        teacher="m", engine="openai", dtype="endpoint", tokenizer_sha256="", chat_template_sha256="",
        num_logprobs=0,
    )  # fmt: skip
    store = open_store(tmp_path / "run" / "teacher_store", identity, 1)
    book = BatchBook(store.layout.batches)
    created = book.add([row(1), row(2)], [b"{}\n"], {}, 0.25)
    book.save(created, state="created", batch_id="batch_abc", status="in_progress")
    book.settle(book.add([row(3)], [b"{}\n"], {}, 0.5), 0.1)
    (tmp_path / "run" / "resolved.yaml").write_text("run: {}\n")
    return tmp_path / "run"


def test_live_batches_are_listed_and_settled_ones_are_not(run: Path) -> None:
    (batch,) = list_live_batches(run / "teacher_store")
    assert (batch.batch_id, batch.state, batch.status, batch.requests) == (
        "batch_abc", "created", "in_progress", 2,
    )  # fmt: skip
    assert 0.0 <= batch.age_seconds < 60.0
    assert batch.reserved_usd == 0.25
    assert list_live_batches(run / "nothing") == []


@pytest.mark.parametrize("command", [["status"], ["store", "stats"]])
def test_status_and_stats_show_them(
    run: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(run if command == ["status"] else run / "teacher_store")
    assert main([*command, place]) == 0
    shown = capsys.readouterr().out
    assert "batch_abc" in shown and "in_progress" in shown
    assert main([*command, place, "--json"]) == 0
    assert [batch["requests"] for batch in json.loads(capsys.readouterr().out)["batches"]] == [2]
