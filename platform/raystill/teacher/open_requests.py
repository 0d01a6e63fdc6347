"""What a teacher with open weights is asked: token ids, rendered by its own chat template."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.store.store import TeacherStore
from raystill.teacher.engine import Sampling
from raystill.teacher.identify import KnownTeacher
from raystill.teacher.plan_requests import Question, RequestPlan, RequestPlanner
from raystill.teacher.pool import engine_range
from raystill.teacher.preflight import require_open_teacher
from raystill.teacher.row_order import prefix_order
from raystill.teacher.sampling import row_sampling, sampling_of
from raystill.text.prompt_row import Prompt

TRUNCATED_FLAG = "truncated_prompt"
_WITHOUT_SCHEMAS = ("transformers", "fake")


def plan_open_requests(
    teacher: KnownTeacher, store: TeacherStore, prompt_table: Path, table: Path, scratch: Path
) -> RequestPlan:
    """Plan what `teacher` has not answered yet, see `RequestPlanner.plan`.

    Raises DataError for a prompt that the chat template refuses, or that asks for a JSON Schema where the
    engine knows none.
    """
    planner = RequestPlanner(
        config=teacher.config,
        identity=teacher.identity,
        ask=partial(_ask, teacher),
        facts=_facts(teacher),
        arrange=prefix_order,
        num_workers=engine_range(teacher.config.teacher.vllm)[1],
    )
    return planner.plan(store, prompt_table, table, scratch)


def describe_too_long(teacher: KnownTeacher, prompt_table: Path) -> str | None:
    """What the user should hear about prompts that leave the teacher's context no room for an answer.

    None where there are none, or where truncation makes them fit. Raises DataError where no prompt fits.
    """
    context = teacher.facts.context_length
    if require_open_teacher(teacher.config).tokenizer.truncation:
        return None
    lengths = pq.read_table(prompt_table, columns=["num_tokens"]).column("num_tokens").to_numpy()
    too_long = int((lengths >= context).sum())
    if not too_long:
        return None
    said = (
        f"{too_long:,} of {len(lengths):,} prompts leave no room for an answer in the teacher's context of "
        f"{context:,} tokens; the longest has {int(lengths.max()):,}"
    )
    choices = (
        "teacher.open.tokenizer.truncation: true keeps their ends; prompts.over_length: drop with "
        "teacher.base.prompt_length leaves them out"
    )
    if teacher.config.teacher.vllm.max_model_len is not None:
        choices += "; a larger teacher.vllm.max_model_len, or none, may fit them"
    if too_long == len(lengths):
        raise DataError(
            said, where=str(prompt_table), fix=f"{choices}; or choose a teacher with more context"
        )
    return f"{said}: they will be rejected ({choices})"


def _facts(teacher: KnownTeacher) -> dict[str, Any]:
    """What `_ask` reads of the teacher, apart from its configuration and identity."""
    return {
        "engine": teacher.facts.engine,
        "context_length": teacher.facts.context_length,
        "stop_token_ids": list(teacher.stop_token_ids),
        "tool_schema": teacher.tool_schema and teacher.tool_schema.sha256,
        "markers": teacher.markers and vars(teacher.markers),
    }


def _ask(teacher: KnownTeacher, prompt: Prompt) -> Question:
    sampling = sampling_of(teacher.config, prompt.split, teacher.tool_schema)
    sampling = row_sampling(sampling, prompt.split, prompt.sampling)
    _require_schema_support(teacher, prompt, sampling)
    tokenizer = require_open_teacher(teacher.config).tokenizer
    ids = teacher.chat.render_prompt_ids(prompt.messages, tokenizer.add_generation_prompt)
    flags: list[str] = []
    if tokenizer.truncation:
        kept = _truncate(ids, teacher.facts.context_length, sampling)
        flags, ids = ([TRUNCATED_FLAG] if len(kept) < len(ids) else []), kept
    facts: dict[str, Any] = {**vars(sampling), "stop_token_ids": list(teacher.stop_token_ids)}
    if teacher.markers is not None:
        facts["reasoning"] = teacher.config.teacher.base.reasoning
    return Question(sampling, rendered=ids, facts=facts, prompt_token_ids=ids, flags=flags)


def _require_schema_support(teacher: KnownTeacher, prompt: Prompt, sampling: Sampling) -> None:
    if sampling.json_schema is not None and teacher.facts.engine in _WITHOUT_SCHEMAS:
        raise DataError(
            f"a prompt asks for a JSON Schema, which the {teacher.facts.engine} engine can't force",
            where=f"prompt {prompt.id} of {prompt.source} (sampling.json_schema)",
            fix="set teacher.engine: vllm, or leave json_schema out of the prompts' sampling",
        )


def _truncate(ids: list[int], context_length: int, sampling: Sampling) -> list[int]:
    """The end of a prompt that doesn't fit: the question and the assistant's header stand there.

    Leaves room for a whole completion, but never more than half of the context.
    """
    if len(ids) < context_length:
        return ids
    room = max(context_length - sampling.max_new_tokens, context_length // 2)
    return ids[-room:]
