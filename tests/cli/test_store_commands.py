"""`raystill store` on a whole, a damaged and a missing store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raystill.cli.main import main
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.records import Reject, TeacherRow
from raystill.store.store import load_store, open_store
from raystill.store.writer import PartWriter

NUM_PARTITIONS = 2


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six rows of text without signals, over both partitions."""
    identity = StoreIdentity(
        teacher="t",
        engine="fake",
        dtype="float32",
        tokenizer_sha256="a",
        chat_template_sha256="b",
        num_logprobs=0,
    )
    opened = open_store(tmp_path / "store", identity, NUM_PARTITIONS)
    rows = []
    for index in range(6):
        prompt = np.array([1, 2, index], np.int32)
        rows.append(
            TeacherRow(
                key=request_key(identity, prompt, {}, seed=0), prompt_id=f"p{index}", split="train",
                source="s", messages="[]", prompt_token_ids=prompt, completion="ab",
                completion_token_ids=np.array([3, 4], np.int32), finish_reason="stop", flags=(),
                teacher_id=identity.teacher_id, sample_index=0, seconds=0.1,
            )
        )  # fmt: skip
    with PartWriter(opened) as writer:
        for partition in range(NUM_PARTITIONS):
            mine = [row for row in rows if partition_of(row.key, NUM_PARTITIONS) == partition]
            if mine:
                writer.commit_rows(partition, mine)
    return opened.path


def test_stats_counts_rows_and_tokens(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "stats", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_rows"] == 6 and found["num_tokens"] == 12 and found["store"] == str(store)
    assert main(["store", "stats", str(store)]) == 0
    assert "6 in" in capsys.readouterr().out


def test_verify_passes_a_whole_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(store)]) == 0
    assert "verified: 6 rows" in capsys.readouterr().out
    assert main(["store", "verify", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_verify_names_a_damaged_part_and_what_is_lost(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = sorted(store.rglob("*.parquet"))[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(bytes(content))
    assert main(["store", "verify", str(store)]) == 3
    said = capsys.readouterr().err
    assert part.name in said and "keys are lost" in said


def test_quarantine_sets_damage_aside_and_the_rest_verifies(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = sorted(store.rglob("*.parquet"))[0]
    part.write_bytes(b"")
    assert main(["store", "verify", str(store)]) == 3
    assert "--quarantine" in capsys.readouterr().err
    assert main(["store", "verify", str(store), "--quarantine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_quarantined"] == 1 and 0 < found["num_rows"] < 6
    assert main(["store", "verify", str(store)]) == 0
    assert not part.exists() and len(list((store / "quarantine").rglob("*.parquet"))) == 1


def test_a_missing_store_is_a_data_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("stats", "verify"):
        assert main(["store", command, str(tmp_path / "nowhere")]) == 3
        assert "nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_repack_diff_and_retry_rejects(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(store, other)
    assert main(["store", "diff", str(store), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_equal"]
    reject = Reject("f" * 32, "p", "generate", "timeout", "no answer", 3)
    with PartWriter(load_store(store)) as writer:
        writer.commit_rejects(NUM_PARTITIONS - 1, [reject])
    assert main(["store", "retry-rejects", str(store), "--code", "other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["released"] == 0
    assert main(["store", "retry-rejects", str(store)]) == 0
    assert capsys.readouterr().out.startswith("1 rejects are pending again")
    assert main(["store", "repack", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts_after"] == NUM_PARTITIONS + 1
    assert main(["store", "diff", str(store), str(other)]) == 0
    assert "6 equal, 0 different, 0 only in" in " ".join(capsys.readouterr().out.split())
