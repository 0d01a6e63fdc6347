"""From stored answers to training examples: our rate against the raw tokenizer's, and a second start.

Chats that are known as text are what costs: they are read from a store, rendered, tokenised, masked and laid
out. The raw rate is that of the same tokenizer on the same rendered text, in batches of a thousand and with
nothing else done. A second start takes the rows from the cache. Rounds take turns; ratios are of medians.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raystill.bench.random_teacher import RandomTeacherShape, build_random_teacher
from raystill.bench.result import BenchRow, bench_result
from raystill.store.identity import StoreIdentity, partition_of
from raystill.store.records import TeacherRow
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.token_match import TokenMatch
from raystill.train.encode import TrainingData, load_training_data
from raystill.train.selection import TrainingRows
from raystill.train.settings import TrainSettings, resolve_settings
from raystill.train.tokenise import BATCH_ROWS

RATE_GOAL, CACHE_GOAL = 0.8, 2.0
_PARTITIONS, _ROWS_PER_PART = 4, 512
_WORDS = 4000
_VOCAB_SIZE = 2048


@dataclass(frozen=True)
class Sizes:
    """How many chats, and how many rounds."""

    num_rows: int
    rounds: int


FULL, QUICK = Sizes(20_000, 3), Sizes(2_000, 2)


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Measure both sides in turns. `quick`: a tenth of the chats, two rounds."""
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        return bench_result("data", measure(QUICK if quick else FULL, Path(scratch)))


def measure(sizes: Sizes, place: Path) -> list[BenchRow]:
    """The benchmark's rows; writes to `place`."""
    chat = load_chat_format(str(build_random_teacher(place / "model", RandomTeacherShape(_VOCAB_SIZE))))
    rows = list(make_rows(sizes.num_rows))
    store = _commit(place / "store", rows)
    texts = [chat.render_text(json.loads(row.messages)) for row in rows]
    completions = [row.completion for row in rows]
    settings, keys = _settings(), TrainingRows(frozenset(row.key for row in rows))
    ours, raw, again = [], [], []
    num_tokens = 0
    for number in range(sizes.rounds):
        started = time.perf_counter()
        counted = count_tokens(chat, texts, completions)
        raw.append(counted / (time.perf_counter() - started))
        cache = place / f"cache-{number}"
        started = time.perf_counter()
        data = _load(store, keys, settings, chat, cache)
        num_tokens = int(data.train.lengths.sum())
        ours.append(num_tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        _load(store, keys, settings, chat, cache)
        again.append(time.perf_counter() - started)
    rate, peer, seconds = statistics.median(ours), statistics.median(raw), statistics.median(again)
    case = f"{sizes.num_rows:,} chats, {num_tokens:,} tokens"
    goal, ratio = f">= {RATE_GOAL:g}", rate / peer
    return [
        BenchRow(case, "tokens/s", rate, peer, "tokenizer alone", ratio, goal, ratio >= RATE_GOAL),
        BenchRow(
            f"{case}, from cache", "s", seconds, None, "", None, f"< {CACHE_GOAL:g}", seconds < CACHE_GOAL
        ),
    ]


def count_tokens(chat: ChatFormat, prompts: list[str], completions: list[str]) -> int:
    """Tokenise everything in batches by calling the tokenizer, as the raw rate has it; returns the tokens."""
    total = 0
    for start in range(0, len(prompts), BATCH_ROWS):
        for texts in (prompts, completions):
            found: Any = chat.tokenizer(texts[start : start + BATCH_ROWS], add_special_tokens=False)
            total += sum(len(ids) for ids in found["input_ids"])
    return total


def make_rows(count: int) -> Iterator[TeacherRow]:
    """Chats as an endpoint answers them: text only, 40 to 400 words of a Zipf-like vocabulary."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(_WORDS)]
    for number in range(count):
        lengths = generator.integers((10, 30), (100, 300))
        asked, answered = (
            " ".join(words[index % _WORDS] for index in generator.zipf(1.3, length)) for length in lengths
        )
        yield TeacherRow(
            key=hashlib.sha256(str(number).encode()).hexdigest()[:32],
            prompt_id=f"p{number}",
            split="train",
            source="synthetic",
            messages=json.dumps([{"role": "user", "content": f"{number}: {asked}"}]),
            prompt_token_ids=np.zeros(0, dtype=np.int32),
            completion=answered,
            completion_token_ids=np.zeros(0, dtype=np.int32),
            finish_reason="stop",
            flags=(),
            teacher_id="synthetic",
            sample_index=0,
            seconds=0.0,
        )


def _commit(path: Path, rows: list[TeacherRow]) -> TeacherStore:
    identity = StoreIdentity(
        teacher="synthetic",
        engine="openai",
        dtype="unknown",
        tokenizer_sha256="",
        chat_template_sha256="",
        num_logprobs=0,
    )
    store = open_store(path, identity, num_partitions=_PARTITIONS)
    with PartWriter(store) as writer:
        for partition in range(_PARTITIONS):
            own = [row for row in rows if partition_of(row.key, _PARTITIONS) == partition]
            for start in range(0, len(own), _ROWS_PER_PART):
                writer.commit_rows(partition, own[start : start + _ROWS_PER_PART])
    return store


def _settings() -> TrainSettings:
    from raystill.config.schema import Config

    config = Config.model_validate({"training": {"max_seq_len": 4096}, "train": {"sft": {}}})
    return resolve_settings(config, "sft")


def _load(
    store: TeacherStore, keys: TrainingRows, settings: TrainSettings, chat: ChatFormat, cache: Path
) -> TrainingData:
    match = TokenMatch(same_ids=False, same_template=False)
    return load_training_data(
        store, keys, settings, chat, match, vocab_size=_VOCAB_SIZE, context=4096, cache=cache
    )
