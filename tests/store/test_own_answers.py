"""A run reads the store that its own answers are in, or none (F34)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from store_builder import build_store, make_reject, make_row

from raystill.errors import DataError
from raystill.run.manifest import Manifest
from raystill.run.publish import sha256_file
from raystill.store.content import content_digest
from raystill.store.identity import partition_of
from raystill.store.own_answers import require_own_answers
from raystill.store.reader import committed_keys
from raystill.store.requests import Request, save_requests
from raystill.store.writer import PartWriter


def requests(seeds: range) -> list[Request]:
    return [Request(make_row(seed).key, f"prompt-{seed}", "train") for seed in seeds]


def test_a_store_with_all_answers_and_rejects_is_the_runs_own(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(6)])
    with PartWriter(store) as writer:
        writer.commit_rejects(partition_of(make_row(6).key, store.num_partitions), [make_reject(6)])
    save_requests(tmp_path / "requests.parquet", requests(range(7)))
    require_own_answers(store, tmp_path / "requests.parquet", None)


@pytest.mark.parametrize("harm", ["a partition is deleted", "another dataset"])
def test_a_store_without_the_runs_answers_is_refused_with_the_hashes(tmp_path: Path, harm: str) -> None:
    """F34: also where no commit is left that would name the missing part."""
    store = build_store(tmp_path / "store", [make_row(i) for i in range(12)], num_partitions=2)
    table = tmp_path / "requests.parquet"
    save_requests(table, requests(range(12)))
    facts = {"store_sha256": content_digest(store)}
    generated = Manifest(stage="generate", fingerprint="f", config={}, inputs={}, metrics=facts)
    if harm == "another dataset":
        store, lacking = build_store(tmp_path / "other", [make_row(i) for i in range(50, 60)]), 12
    else:
        lacking = len(committed_keys(store, 0))
        for folder in (store.layout.parts("rows", 0), store.layout.commits(0)):
            shutil.rmtree(folder)
    with pytest.raises(DataError, match=f"lacks {lacking} of this run's 12 answers") as caught:
        require_own_answers(store, table, generated)
    text = str(caught.value)
    for known in (facts["store_sha256"], content_digest(store), sha256_file(table), store.identity.teacher_id,
                  store.identity.tokenizer_sha256):  # fmt: skip
        assert known[:12] in text
