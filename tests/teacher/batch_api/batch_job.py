"""A job for the Batch API: a store, its requests, a driver. Also runs as a process that tests kill."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raystill.config.closed_teacher import ClosedEndpoint, ClosedPrices
from raystill.run.events import EventLog
from raystill.store.identity import StoreIdentity, request_key
from raystill.store.store import TeacherStore, open_store
from raystill.teacher.api.address import parse_address
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.reader import AnswerReader
from raystill.teacher.api.wire import BodyShape
from raystill.teacher.batch_api.endpoint import BatchEndpoint
from raystill.teacher.batch_api.plan import BatchLimits
from raystill.teacher.batch_api.run_batches import BatchSettings, run_batches
from raystill.teacher.engine import Sampling
from raystill.teacher.progress import Progress
from raystill.teacher.row_work import GenerateWork
from raystill.teacher.shards import ShardWriter

IDENTITY = StoreIdentity(
    teacher="scripted",
    engine="openai",
    dtype="api",
    tokenizer_sha256="",
    chat_template_sha256="",
    num_logprobs=0,
)
SAMPLING = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=64)


@dataclass
class BatchJob:
    """`texts` are the prompts; a key follows from its text alone."""

    directory: str
    base_url: str
    texts: list[str]
    max_rows: int = 50_000
    max_bytes: int = 200_000_000
    max_attempts: int = 3
    max_cost_usd: float | None = None
    prices: dict[str, float] = field(default_factory=dict)
    max_live: int = 16

    @property
    def store(self) -> TeacherStore:
        """The store, created by the first use."""
        return open_store(Path(self.directory) / "store", IDENTITY, 4)

    @property
    def log(self) -> Path:
        """Where events go."""
        return Path(self.directory) / "events.jsonl"

    def key(self, text: str) -> str:
        """The request key of a prompt."""
        return request_key(IDENTITY, text, vars(SAMPLING), seed=0)

    def run(self) -> Progress:
        """Plan what the store lacks, and do it."""
        from raystill.store.reader import committed_keys

        store = self.store
        writer = ShardWriter(Path(self.directory) / "scratch", "generate", store.num_partitions)
        stored = {key for part in range(store.num_partitions) for key in committed_keys(store, part)}
        for text in self.texts:
            if self.key(text) not in stored:
                writer.add(self._row(text))
        shards = [shard for part, table in writer.iter_partitions() for shard in writer.cut(part, table, 16)]
        endpoint = ClosedEndpoint(base_url=self.base_url, api_key_env=None, mode="batch")
        address = parse_address(endpoint)
        settings = BatchSettings(
            shape=BodyShape("scripted"),
            reader=AnswerReader(Prices.from_config(ClosedPrices(**self.prices), is_batch=True), "keep"),
            where=address.base_url,
            max_attempts=self.max_attempts,
            max_cost_usd=self.max_cost_usd,
            limits=BatchLimits(self.max_rows, self.max_bytes),
            max_live=self.max_live,
            first_poll_s=0.02,
            longest_poll_s=0.1,
        )
        with EventLog(self.log, "generate") as events:
            return run_batches(
                shards,
                lambda: BatchEndpoint(address, None, timeout_s=60.0, max_attempts=6),
                store,
                self._work(store),
                settings,
                events,
            )

    def _work(self, store: TeacherStore) -> GenerateWork:
        return GenerateWork(
            tokenizer_directory="",
            teacher_id=store.identity.teacher_id,
            sampling_by_split={"train": SAMPLING},
            num_logprobs=0,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
            trust_remote_code=False,
        )

    def _row(self, text: str) -> dict[str, Any]:
        return {
            "key": self.key(text),
            "prompt_id": text[:40],
            "split": "train",
            "sample_index": 0,
            "source": "test",
            "messages": json.dumps(messages_of(text)),
            "prompt_token_ids": [],
            "sampling": None,
            "flags": [],
        }


def messages_of(text: str) -> list[dict[str, Any]]:
    """The prompt's messages."""
    return [{"role": "user", "content": text}]


if __name__ == "__main__":
    # A shell that starts the tests in the background has its children ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    BatchJob(**json.loads(sys.argv[1])).run()
