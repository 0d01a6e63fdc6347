"""Sampled and hidden signals as parts of a store: bytes that come back, checks, refusals, repacking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_builder import IDENTITY, build_store, by_partition, full_logprobs, make_row

from raystill.errors import DataError
from raystill.store.content import content_digest
from raystill.store.reader import load_rows
from raystill.store.records import TeacherRow
from raystill.store.repack import repack_store
from raystill.store.store import TeacherStore, open_store
from raystill.store.tier_reader import keys_without_tier, load_hidden, load_sampled
from raystill.store.tier_records import HiddenSignal, SampledSignal, TierKind, TierSignal
from raystill.store.verify import verify_store
from raystill.store.writer import PartWriter

D = 16


def make_sampled(seed: int, num_tokens: int, num_draws: int = 50) -> SampledSignal:
    """Draws from `full_logprobs(seed, num_tokens)`."""
    rng = np.random.default_rng(seed)
    logprobs = full_logprobs(seed, num_tokens)
    counts_TV = np.stack([rng.multinomial(num_draws, np.exp(row)) for row in logprobs])
    positions, ids = np.nonzero(counts_TV)
    return SampledSignal(
        num_draws,
        np.bincount(positions, minlength=num_tokens).astype(np.int32),
        ids.astype(np.int32),
        counts_TV[positions, ids].astype(np.uint16),
        logprobs[:, 0].astype(np.float32),
    )


def make_hidden(seed: int, num_tokens: int) -> HiddenSignal:
    return HiddenSignal(np.random.default_rng(seed).normal(size=(num_tokens, D)).astype(np.float16))


def make_signal(kind: TierKind, seed: int, num_tokens: int) -> TierSignal:
    return make_sampled(seed, num_tokens) if kind == "sampled" else make_hidden(seed, num_tokens)


@pytest.fixture
def rows() -> list[TeacherRow]:
    return [make_row(i, num_tokens=1 + i % 7, num_logprobs=None) for i in range(20)]


@pytest.fixture
def store(tmp_path: Path, rows: list[TeacherRow]) -> TeacherStore:
    return build_store(tmp_path / "store", rows)


def commit(store: TeacherStore, kind: TierKind, rows: list[TeacherRow], per_part: int = 4) -> None:
    with PartWriter(store) as writer:
        for partition, group in by_partition(rows, store.num_partitions).items():
            for start in range(0, len(group), per_part):
                chunk = group[start : start + per_part]
                signals = [
                    (r.key, make_signal(kind, int(r.prompt_id[-5:]), len(r.completion_token_ids)))
                    for r in chunk
                ]
                tokens = {row.key: row.completion_token_ids for row in chunk}
                writer.commit_tier(partition, kind, signals, completion_token_ids=tokens)


def test_draws_come_back(store: TeacherStore, rows: list[TeacherRow]) -> None:
    commit(store, "sampled", rows)
    found = load_sampled(store, [row.key for row in rows], num_draws=50)
    for seed, row in enumerate(rows):
        wanted, got = make_sampled(seed, len(row.completion_token_ids)), found[row.key]
        for name in ("num_unique_T", "draw_ids_E", "draw_counts_E", "sampled_logprob_T"):
            left, right = getattr(wanted, name), getattr(got, name)
            assert left.dtype == right.dtype
            assert left.tobytes() == right.tobytes()


def test_hidden_states_come_back(store: TeacherStore, rows: list[TeacherRow]) -> None:
    commit(store, "hidden", rows)
    found = load_hidden(store, [row.key for row in rows])
    for seed, row in enumerate(rows):
        wanted = make_hidden(seed, len(row.completion_token_ids)).hidden_TD
        assert found[row.key].hidden_TD.tobytes() == wanted.tobytes()
        assert found[row.key].hidden_TD.shape == wanted.shape


@pytest.mark.parametrize("kind", ["sampled", "hidden"])
def test_tiers_are_parts_like_others(store: TeacherStore, rows: list[TeacherRow], kind: TierKind) -> None:
    before = content_digest(store, ("rows", "scores"))
    pending = [keys_without_tier(store, number, kind) for number in range(store.num_partitions)]
    assert sum(map(len, pending)) == 20
    commit(store, kind, rows[:15], per_part=2)
    assert sum(len(keys_without_tier(store, number, kind)) for number in range(store.num_partitions)) == 5
    commit(store, kind, rows[10:], per_part=3)
    assert not any(keys_without_tier(store, number, kind) for number in range(store.num_partitions))
    assert verify_store(store.path).ok
    assert content_digest(store, ("rows", "scores")) == before
    digest = content_digest(store, (kind,))
    repack_store(store, rows_per_part=100)
    assert verify_store(store.path).ok
    assert content_digest(store, (kind,)) == digest
    assert len(load_rows(store)) == 20


@pytest.mark.parametrize("kind", ["sampled", "hidden"])
def test_equal_content_has_equal_digests(
    tmp_path: Path, store: TeacherStore, rows: list[TeacherRow], kind: TierKind
) -> None:
    other = open_store(tmp_path / "other", store.identity, store.num_partitions)
    commit(store, kind, rows, per_part=2)
    commit(other, kind, rows[::-1], per_part=5)
    assert content_digest(store, (kind,)) == content_digest(other, (kind,))


def test_what_is_missing_or_of_another_size_is_refused(store: TeacherStore, rows: list[TeacherRow]) -> None:
    commit(store, "sampled", rows[:3])
    keys = [row.key for row in rows[:3]]
    with pytest.raises(DataError, match="60 draws per token are asked for, 50 are stored"):
        load_sampled(store, keys, num_draws=60)
    with pytest.raises(DataError, match="have no sampled signal"):
        load_sampled(store, [row.key for row in rows])
    with pytest.raises(DataError, match="have no hidden signal"):
        load_hidden(store, keys)
    assert sum(len(keys_without_tier(store, n, "sampled", 51)) for n in range(store.num_partitions)) == 20


def test_a_damaged_part_is_named(store: TeacherStore, rows: list[TeacherRow]) -> None:
    commit(store, "hidden", rows)
    part = next((store.path / "hidden").rglob("*.parquet"))
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="changed since"):
        load_hidden(store, [row.key for row in rows])
    assert not verify_store(store.path).ok


SAMPLED = make_sampled(3, 4)
BAD: list[tuple[TierKind, TierSignal, str]] = [
    ("sampled", replace(SAMPLED, num_draws=49), "do not sum to 49"),
    ("sampled", replace(SAMPLED, draw_ids_E=SAMPLED.draw_ids_E[::-1].copy()), "ascending"),
    ("sampled", replace(SAMPLED, sampled_logprob_T=np.full(4, np.nan, np.float32)), "not finite"),
    ("sampled", replace(SAMPLED, draw_counts_E=np.zeros_like(SAMPLED.draw_counts_E)), "never drawn"),
    ("sampled", make_sampled(3, 5), "5 positions for 4"),
    ("hidden", make_hidden(3, 5), "5 positions for 4"),
    ("hidden", HiddenSignal(np.full((4, D), np.inf, np.float16)), "not finite"),
    ("hidden", HiddenSignal(np.zeros((4, D), np.float16)), "all zeros"),
    ("hidden", SAMPLED, "another kind"),
]


@pytest.mark.parametrize(("kind", "signal", "said"), BAD)
def test_signals_that_cannot_be_right_are_never_written(
    store: TeacherStore, kind: TierKind, signal: TierSignal, said: str
) -> None:
    row = make_row(3, num_tokens=4, num_logprobs=None)
    (partition,) = by_partition([row], store.num_partitions)
    with PartWriter(store) as writer, pytest.raises(DataError, match=said):
        writer.commit_tier(
            partition, kind, [(row.key, signal)], completion_token_ids={row.key: row.completion_token_ids}
        )
    assert not (store.path / kind).exists()


def test_draws_are_small_on_disk(tmp_path: Path) -> None:
    """Peaked distributions of a vocabulary of 50: 12 unique ids of 50 draws cost a few dozen bytes."""
    rows = [make_row(i, num_tokens=400, num_logprobs=None) for i in range(8)]
    store = open_store(tmp_path / "store", IDENTITY, 1)
    with PartWriter(store) as writer:
        record = writer.commit_tier(
            0, "sampled", [(row.key, make_sampled(i, 400)) for i, row in enumerate(rows)]
        )
    assert record.size_bytes / record.num_tokens < 40
