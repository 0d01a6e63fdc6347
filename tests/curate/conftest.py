"""Rows as curate sees them, and a run that is ready for it, made by the real writers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystill.config.schema import Config
from raystill.curate.candidate import Candidate
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.requests import Request, save_requests
from raystill.store.store import open_store
from raystill.store.writer import PartWriter
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

MakeCandidate = Callable[..., Candidate]
IDENTITY = StoreIdentity(
    teacher="example/teacher",
    engine="fake",
    dtype="float32",
    tokenizer_sha256="a" * 64,
    chat_template_sha256="b" * 64,
    num_logprobs=1,
)


@dataclass(frozen=True)
class Answer:
    """A row of the test run; `logprob` is that of each of its tokens, None stores no signal."""

    prompt_id: str
    prompt: str
    completion: str
    split: str = "train"
    source: str = "web"
    task: str = "text"
    reference: str | None = None
    finish_reason: str = "stop"
    sample_index: int = 0
    num_tokens: int = 8
    logprob: float | None = None
    tool_calls: str | None = None


def key_of(answer: Answer) -> str:
    return request_key(IDENTITY, answer.prompt_id, {}, seed=0, sample_index=answer.sample_index)


def _row(answer: Answer) -> TeacherRow:
    T = answer.num_tokens
    signal = None
    if answer.logprob is not None:
        logprobs = np.full(T, answer.logprob, np.float32)
        tail = np.log1p(-np.exp(logprobs.astype(np.float16).astype(np.float64))).astype(np.float32)
        signal = TopKSignal(np.zeros((T, 1), np.int32), logprobs.astype(np.float16)[:, None], logprobs, tail)
    return TeacherRow(
        key=key_of(answer),
        prompt_id=answer.prompt_id,
        split=answer.split,
        source=answer.source,
        messages=json.dumps([{"role": "user", "content": answer.prompt}]),
        prompt_token_ids=np.arange(4, dtype=np.int32),
        completion=answer.completion,
        completion_token_ids=np.zeros(T, np.int32),
        finish_reason=answer.finish_reason,
        flags=(),
        teacher_id=IDENTITY.teacher_id,
        sample_index=answer.sample_index,
        seconds=0.1,
        tool_calls=answer.tool_calls,
        signal=signal,
    )


@dataclass
class CurateRun:
    """Builds the run directory that curate starts from."""

    root: Path

    def config(self, name: str = "run", **curate: Any) -> Config:
        values: dict[str, Any] = {
            "run": {"name": name, "dir": str(self.root / "runs")},
            "teacher": {"engine": "fake", "open": {"model": {"name": "example/teacher"}}},
            "curate": curate,
        }
        values["teacher"]["signals"] = {"capture": "generation"}
        return Config.model_validate(values)

    def build(
        self, config: Config, answers: Sequence[Answer], *, num_partitions: int = 2, rows_per_part: int = 50
    ) -> RunPaths:
        """Write prompt table, store, requests and the manifests of prepare and generate."""
        paths = RunPaths.from_config(config)
        prompts = {
            answer.prompt_id: Prompt(
                answer.prompt_id,
                answer.source,
                answer.split,  # type: ignore[arg-type]
                [{"role": "user", "content": answer.prompt}],
                answer.task,  # type: ignore[arg-type]
                answer.reference,
                4,
            )
            for answer in answers
        }
        save_prompts(paths.prompt_table, list(prompts.values()))
        store = open_store(paths.store, IDENTITY, num_partitions)
        rows = [_row(answer) for answer in answers]
        with PartWriter(store) as writer:
            for partition in range(num_partitions):
                part = [row for row in rows if partition_of(row.key, num_partitions) == partition]
                for start in range(0, len(part), rows_per_part):
                    writer.commit_rows(partition, part[start : start + rows_per_part])
        save_requests(paths.requests, [Request(row.key, row.prompt_id, row.split) for row in rows])
        for stage in ("prepare", "generate"):
            manifest = Manifest(stage=stage, fingerprint=f"test-{len(answers)}", config={}, inputs={})
            save_manifest(paths.stage_dir(stage), manifest)  # type: ignore[arg-type]
        return paths


@pytest.fixture
def curate_run(tmp_path: Path) -> CurateRun:
    return CurateRun(tmp_path)


@pytest.fixture(scope="session")
def make_answer() -> type[Answer]:
    return Answer


@pytest.fixture(scope="session")
def answer_key() -> Callable[[Answer], str]:
    return key_of


@pytest.fixture(scope="session")
def candidate() -> MakeCandidate:
    """A candidate from a completion; keyword arguments replace other fields."""

    def make(completion: str = "Fine.", *, prompt: str = "How is the weather?", **changes: Any) -> Candidate:
        fields: dict[str, Any] = {
            "key": "k",
            "prompt_id": "p",
            "split": "train",
            "source": "web",
            "task": "text",
            "sample_index": 0,
            "messages": json.dumps([{"role": "user", "content": prompt}]),
            "completion": completion,
            "finish_reason": "stop",
            "tool_calls": None,
            "num_tokens": 5,
        }
        return Candidate(**{**fields, **changes})

    return make


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for a module's tests, by the product's own rules."""
    from raystill.cluster.ray_session import ray_session

    with ray_session(Config()):
        yield
