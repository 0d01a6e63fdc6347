"""The identity run: a teacher that trains on its own stored signals has nothing to learn.

A few rows are scored exactly, written into a store, read back, encoded and collated as training does it, and
the teacher's own weights take the student's place. A signal that is a token off, a prompt that is rendered in
another way, ids of another vocabulary and logits that are rescaled behind the head all show as a divergence,
before anything is paid for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raystill.cluster.findings import Findings
from raystill.cluster.model_size import count_local_parameters
from raystill.config.schema import Config
from raystill.errors import DataError

if TYPE_CHECKING:
    from raystill.prompts.shapes import RawPrompt
    from raystill.store.records import TeacherRow, TopKSignal
    from raystill.teacher.engine import ScoreRequest
    from raystill.teacher.identify import KnownTeacher

AREA = "identity"
# Nats per token. What is kept of a logprob (`store.precision`) is worth below 0.002 of them.
TOLERANCE = 0.01
_ROWS = 8
_LONGEST_ANSWER = 256
_MOST_LOGPROBS = 20
# Two copies in float32 and some seconds on a CPU.
_LARGEST_PARAMETERS = 600_000_000
_STAND_IN = "This is where the teacher's completion stands."


@dataclass(frozen=True)
class IdentityRun:
    """What was measured: `nats` per token between the teacher and itself, over `num_tokens` of `num_rows`.

    Rounding may leave the stored mass a little off 1, and so the divergence a little below 0.
    """

    nats: float
    num_rows: int
    num_tokens: int
    num_logprobs: int


def check_identity(config: Config, prompts: Sequence[RawPrompt], findings: Findings) -> None:
    """Run it where the run distils from an open teacher whose weights are here and small enough.

    Raises DataError for a teacher that diverges from itself, and what loading and scoring it raise.
    """
    teacher = config.teacher.open
    if teacher is None or config.train.distillation is None or not prompts:
        return
    parameters = count_local_parameters(Path(teacher.model.name).expanduser())
    if parameters is None or parameters > _LARGEST_PARAMETERS:
        why = "its weights are in no local directory" if parameters is None else f"{parameters:,} parameters"
        findings.good(AREA, f"not run for this teacher ({why}): every part's own check covers it")
        return
    found = run_identity(config, prompts)
    if abs(found.nats) > TOLERANCE:
        raise DataError(
            f"the teacher is {found.nats:.3g} nats per token away from its own stored signals, which should "
            f"be at most {TOLERANCE:g}: training would learn something else than this teacher",
            where=teacher.model.name,
            fix="use a teacher of the Qwen, Llama or Mistral families, and the chat template that it came "
            "with; if it is one, report this",
        )
    findings.good(
        AREA,
        f"the teacher as its own student is {found.nats:.1e} nats per token away from what would be stored "
        f"({found.num_rows} rows, {found.num_tokens} tokens, {found.num_logprobs} logprobs)",
    )


def run_identity(config: Config, prompts: Sequence[RawPrompt]) -> IdentityRun:
    """Score, store, read and compare. Raises DataError where no row is short enough."""
    from raystill.teacher.identify import identify_teacher

    own = _as_own_student(config)
    teacher = identify_teacher(own)
    k = own.teacher.signals.num_logprobs
    requests, chosen = _choose_rows(teacher, prompts, own.training.max_seq_len, k)
    if not requests:
        raise DataError(
            "no prompt is short enough for an identity run", fix="raise training.max_seq_len, or shorten them"
        )
    signals = asyncio.run(_score(teacher, requests, k))
    rows = [
        _row(teacher, request, prompt, signal)
        for request, prompt, signal in zip(requests, chosen, signals, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="raystill-identity-") as scratch:
        nats = _measure(own, teacher, rows, Path(scratch) / "store")
    return IdentityRun(nats, len(rows), sum(len(request.completion_token_ids) for request in requests), k)


def _as_own_student(config: Config) -> Config:
    """The same teacher, exact and on this machine's CPU, whose student is itself and learns nothing else."""
    given = config.teacher.open
    assert given is not None
    directory = str(Path(given.model.name).expanduser())
    teacher = given.model_dump(mode="json", include={"model", "tokenizer"})
    teacher["model"] |= {"name": directory, "bfloat16": False, "attn_implementation": "sdpa"}
    return Config.model_validate(
        {
            "device": {"type": "cpu"},
            "teacher": {
                "engine": "transformers",
                "open": teacher,
                "base": {"tool_schema": config.teacher.base.tool_schema},
                "signals": {"num_logprobs": config.teacher.signals.num_logprobs or _MOST_LOGPROBS},
            },
            "student": {"base_model_name": directory},
            "train": {"distillation": {"init": "student", "evaluation_strategy": "no"}},
            "losses": {"divergence": "forward_kl", "kl_weight": 1.0, "ce_weight": 0.0},
            "training": {"max_seq_len": config.training.max_seq_len},
        }
    )


def _choose_rows(
    teacher: KnownTeacher, prompts: Sequence[RawPrompt], max_seq_len: int, num_logprobs: int
) -> tuple[list[ScoreRequest], list[RawPrompt]]:
    """The first rows that fit, with their references (or a stand-in) as completions."""
    from raystill.teacher.engine import ScoreRequest

    chat, room = teacher.chat, min(max_seq_len, teacher.facts.context_length)
    requests: list[ScoreRequest] = []
    chosen: list[RawPrompt] = []
    for prompt in prompts:
        prompt_ids = chat.render_prompt_ids(prompt.messages)
        answer_ids = chat.encode_completion(prompt.reference or _STAND_IN)
        if len(answer_ids) > _LONGEST_ANSWER:
            answer_ids = chat.encode_completion(_STAND_IN)
        completion_ids = [*answer_ids, chat.turn_end_id]
        if len(prompt_ids) + len(completion_ids) > room:
            continue
        key = hashlib.sha256(str(len(requests)).encode()).hexdigest()[:32]
        requests.append(
            ScoreRequest(
                key, np.array(prompt_ids, np.int32), np.array(completion_ids, np.int32), num_logprobs
            )
        )
        chosen.append(prompt)
        if len(requests) == _ROWS:
            break
    return requests, chosen


async def _score(
    teacher: KnownTeacher, requests: Sequence[ScoreRequest], num_logprobs: int
) -> list[TopKSignal]:
    from raystill.teacher.build_engine import build_engine

    engine = build_engine(teacher.blueprint(num_logprobs=num_logprobs, scoring=True))
    try:
        return await asyncio.gather(*(engine.score(request) for request in requests))
    finally:
        engine.shutdown()


def _row(teacher: KnownTeacher, request: ScoreRequest, prompt: RawPrompt, signal: TopKSignal) -> TeacherRow:
    from raystill.store.records import TeacherRow

    return TeacherRow(
        key=request.key,
        prompt_id=request.key,
        split="train",
        source="identity",
        messages=json.dumps(prompt.messages),
        prompt_token_ids=request.prompt_token_ids,
        completion=teacher.chat.decode(request.completion_token_ids[:-1].tolist()),
        completion_token_ids=request.completion_token_ids,
        finish_reason="stop",
        flags=(),
        teacher_id=teacher.identity.teacher_id,
        sample_index=0,
        seconds=0.0,
        signal=signal,
    )


def _measure(own: Config, teacher: KnownTeacher, rows: Sequence[TeacherRow], place: Path) -> float:
    """Nats per token between what a store at `place` says of `rows` and the teacher as a student."""
    from raystill.run.paths import RunPaths
    from raystill.store.store import open_store
    from raystill.store.writer import PartWriter
    from raystill.train.build import load_student_chat
    from raystill.train.encode import load_training_data
    from raystill.train.evaluation import evaluate_loss
    from raystill.train.group import WorkerGroup
    from raystill.train.objective import build_objective
    from raystill.train.selection import TrainingRows
    from raystill.train.settings import resolve_settings
    from raystill.train.student import Student
    from raystill.train.students.base import load_causal_lm
    from raystill.train.token_match import match_tokenizers

    store = open_store(place, teacher.identity, num_partitions=1)
    with PartWriter(store) as writer:
        writer.commit_rows(0, sorted(rows, key=lambda row: row.key))
    settings = replace(resolve_settings(own, "distill"), packed=False)
    chat = load_student_chat(own, RunPaths(root=place.parent, store=place), "distill")
    assert own.student.base_model_name is not None
    model = load_causal_lm(own.student.base_model_name, "sdpa")
    student = Student(model, model)
    data = load_training_data(
        store,
        TrainingRows(frozenset(row.key for row in rows)),
        settings,
        chat,
        match_tokenizers(own, store, chat, needs_signal=True),
        vocab_size=student.vocab_size,
        context=student.context,
    )
    measured = evaluate_loss(student, data.train, build_objective(settings.terms), settings, WorkerGroup())
    return measured["eval/kd_kl"]
