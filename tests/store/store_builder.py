"""Rows with true distributions over a small vocabulary, and stores of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.records import Reject, RejectStage, TeacherRow, TopKSignal
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter

VOCABULARY = 50
IDENTITY = StoreIdentity(
    teacher="tiny", engine="fake", dtype="float32", tokenizer_sha256="a", chat_template_sha256="b",
    num_logprobs=4,
)  # fmt: skip


def full_logprobs(seed: int, num_tokens: int) -> np.ndarray:
    """Normalised logprobs over the whole vocabulary, T x V, float64."""
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(num_tokens, VOCABULARY))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def sampled_tokens(seed: int, num_tokens: int) -> np.ndarray:
    """Token ids drawn from the distributions of `full_logprobs(seed, num_tokens)`, some outside any top k."""
    rng = np.random.default_rng(seed + 1_000_000)
    probabilities = np.exp(full_logprobs(seed, num_tokens))
    return np.array([rng.choice(VOCABULARY, p=p / p.sum()) for p in probabilities], dtype=np.int32)


def make_signal(seed: int, num_tokens: int, num_logprobs: int) -> TopKSignal:
    """The top k of `full_logprobs`, the rest as tail."""
    logprobs = full_logprobs(seed, num_tokens)
    order = np.argsort(-logprobs, axis=1, kind="stable")
    best, rest = order[:, :num_logprobs], order[:, num_logprobs:]
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(np.take_along_axis(logprobs, rest, 1)).sum(axis=1))
    tokens = sampled_tokens(seed, num_tokens)
    return TopKSignal(
        topk_ids_TK=best.astype(np.int32),
        topk_logprobs_TK=np.take_along_axis(logprobs, best, 1).astype(np.float16),
        sampled_logprob_T=logprobs[np.arange(num_tokens), tokens].astype(np.float32),
        tail_logprob_T=tail.astype(np.float32),
    )


def make_row(
    seed: int, *, num_tokens: int = 6, num_logprobs: int | None = 4, split: str = "train"
) -> TeacherRow:
    """Row `seed`; equal seeds and lengths give equal rows."""
    prompt = np.array([seed, 7, 9], dtype=np.int32)
    return TeacherRow(
        key=request_key(IDENTITY, prompt, {"temperature": 0.0}, seed=0),
        prompt_id=f"prompt-{seed:05d}",
        split=split,
        source="test",
        messages=json.dumps([{"role": "user", "content": f"question {seed} ü\u2028\n"}]),
        prompt_token_ids=prompt,
        completion=f"answer {seed}",
        completion_token_ids=sampled_tokens(seed, num_tokens),
        finish_reason="stop" if seed % 3 else "length",
        flags=("over_length",) if seed % 5 == 0 else (),
        teacher_id=IDENTITY.teacher_id,
        sample_index=0,
        seconds=0.25,
        reasoning=None if seed % 2 else "because",
        cost_usd=0.001,
        signal=None if num_logprobs is None else make_signal(seed, num_tokens, num_logprobs),
    )


def make_reject(seed: int, stage: RejectStage = "generate") -> Reject:
    """A reject for the key of row `seed`."""
    row = make_row(seed, num_tokens=0)
    return Reject(row.key, row.prompt_id, stage, "context", "too long", attempts=1)


def by_partition(rows: Iterable[TeacherRow], num_partitions: int) -> dict[int, list[TeacherRow]]:
    groups: dict[int, list[TeacherRow]] = defaultdict(list)
    for row in rows:
        groups[partition_of(row.key, num_partitions)].append(row)
    return dict(groups)


def commit_all(store: TeacherStore, rows: Iterable[TeacherRow], rows_per_part: int = 4) -> None:
    """Commit rows in the given order, in parts of `rows_per_part`."""
    with PartWriter(store) as writer:
        for partition, group in by_partition(rows, store.num_partitions).items():
            for start in range(0, len(group), rows_per_part):
                writer.commit_rows(partition, group[start : start + rows_per_part])


def build_store(
    path: Path, rows: Iterable[TeacherRow], *, num_partitions: int = 3, rows_per_part: int = 4
) -> TeacherStore:
    """A store of `rows` at `path`."""
    store = open_store(path, IDENTITY, num_partitions)
    commit_all(store, rows, rows_per_part)
    return store


def same_signal(left: TopKSignal | None, right: TopKSignal | None) -> bool:
    """Bitwise equality."""
    if left is None or right is None:
        return left is right
    return all(
        getattr(left, name).dtype == getattr(right, name).dtype
        and getattr(left, name).shape == getattr(right, name).shape
        and getattr(left, name).tobytes() == getattr(right, name).tobytes()
        for name in ("topk_ids_TK", "topk_logprobs_TK", "sampled_logprob_T", "tail_logprob_T")
    )


def same_row(left: TeacherRow, right: TeacherRow) -> bool:
    """Equality of every field."""
    plain = [name for name in left.__dataclass_fields__ if name not in {"signal", "seconds"}]
    return (
        all(np.array_equal(getattr(left, name), getattr(right, name)) for name in plain)
        and abs(left.seconds - right.seconds) < 1e-6
        and same_signal(left.signal, right.signal)
    )
