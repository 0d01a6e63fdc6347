"""What a store has cost, recomputed from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.store.identity import StoreIdentity, partition_of
from raystill.store.records import Reject
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.ledger import RiskEntry, RiskLedger, ledger_directory, load_spending
from raystill.teacher.engine import Usage


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    identity = StoreIdentity(
        teacher="m @ localhost/v1", engine="openai", dtype="endpoint", tokenizer_sha256="",
        chat_template_sha256="", num_logprobs=0,
    )  # fmt: skip
    return open_store(tmp_path / "store", identity, 2)


def test_rejects_and_risks_are_summed_and_a_torn_line_is_left_out(store: TeacherStore) -> None:
    key = "a" * 32
    with PartWriter(store) as writer:
        reject = Reject(key, "p", "generate", "empty", "no text", 1, 0.25)
        writer.commit_rejects(partition_of(key, 2), [reject])
    for number in range(2):
        ledger = RiskLedger(store)
        ledger.append([RiskEntry(key, "timeout", 0.5), RiskEntry("0" * 32, "probe", 0.0, 0.125)])
        ledger.append([])
        ledger.close()
        if number:
            path = sorted(ledger_directory(store).glob("*.jsonl"))[0]
            path.write_text(path.read_text() + '{"key": "torn')
    spending = load_spending(store)
    assert (spending.rejects_usd, spending.probes_usd, spending.at_risk_usd) == (0.25, 0.25, 1.0)
    assert spending.spent_usd == 0.5


def test_cached_tokens_are_cheaper_and_thoughts_cost_like_the_completion() -> None:
    prices = Prices(prompt=2e-6, cached_prompt=1e-6, completion=8e-6)
    usage = prices.priced(Usage(100, 50, cached_prompt_tokens=40, reasoning_tokens=30))
    assert usage.cost_usd == pytest.approx(60 * 2e-6 + 40 * 1e-6 + 50 * 8e-6)
    assert prices.worst_case(100, 50) >= usage.cost_usd
