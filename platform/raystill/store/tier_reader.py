"""Reading sampled and hidden signals: verified like every part, refused where something is missing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from raystill.errors import DataError
from raystill.store.codec import list_scores
from raystill.store.commit import load_commits
from raystill.store.reader import check_present, iter_tables
from raystill.store.records import ScoredIds
from raystill.store.store import TeacherStore
from raystill.store.tier_codec import list_tier_signals
from raystill.store.tier_records import HiddenSignal, SampledSignal, TierKind, TierSignal

Signal = TypeVar("Signal", SampledSignal, HiddenSignal)


def load_sampled(
    store: TeacherStore, keys: Collection[str], num_draws: int | None = None
) -> dict[str, SampledSignal]:
    """Draws of the rows `keys`, by key; of several, those with the most draws.

    Arrays are read-only views. Raises DataError where a row has none or fewer than `num_draws` (fewer than
    stored can't be had either: a part of the draws is another sample), and for a damaged part.
    """
    signals = _load(store, "sampled", keys, SampledSignal)
    for key, signal in signals.items():
        if num_draws is not None and signal.num_draws != num_draws:
            raise DataError(
                f"{num_draws} draws per token are asked for, {signal.num_draws} are stored",
                where=f"key {key}",
                fix="set teacher.signals.num_draws to what is stored, or more and run raystill score",
            )
    return signals


def load_hidden(store: TeacherStore, keys: Collection[str]) -> dict[str, HiddenSignal]:
    """Hidden states of the rows `keys`, by key. Raises DataError where a row has none."""
    return _load(store, "hidden", keys, HiddenSignal)


def keys_without_tier(
    store: TeacherStore, partition: int, kind: TierKind, width: int = 1, *, with_texts: bool = False
) -> set[str]:
    """Keys of stored rows with completion tokens that have no signal of `kind` with at least `width` draws.

    `with_texts`: and those of rows that have no ids but may get some, see `load_scored_ids`. Raises DataError
    where a committed part is missing.
    """
    columns = ("key", "num_completion_tokens")
    pending: set[str] = set()
    for table in iter_tables(store, columns=columns, partitions=(partition,)):
        for key, tokens in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
            if tokens or with_texts:
                pending.add(key)
    for commit in load_commits(store, partition, kind):
        if commit.num_logprobs is not None and commit.num_logprobs >= width:
            check_present(store, commit)
            pending.difference_update(commit.keys)
    return pending


def load_scored_ids(store: TeacherStore, partition: int) -> dict[str, ScoredIds]:
    """Ids that the score stage gave to rows which were text to it, by key: the tiers belong to them too."""
    return {
        score.key: score.ids
        for table in iter_tables(store, kind="scores", partitions=(partition,))
        for score in list_scores(table)
        if score.ids is not None
    }


def _load(
    store: TeacherStore, kind: TierKind, keys: Collection[str], expected: type[Signal]
) -> dict[str, Signal]:
    found: dict[str, Signal] = {}
    for table in iter_tables(store, kind=kind, keys=keys):
        signals: list[TierSignal] = list_tier_signals(kind, table)
        for key, signal in zip(table.column("key").to_pylist(), signals, strict=True):
            assert isinstance(signal, expected)
            found[key] = signal
    missing = sorted(set(keys) - found.keys())
    if missing:
        raise DataError(
            f"{len(missing)} stored rows have no {kind} signal ({', '.join(missing[:3])})",
            where=str(store.path),
            fix=f"set teacher.signals.kind: {kind} and run raystill score",
        )
    return found
