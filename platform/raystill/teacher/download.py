"""A prepared dataset instead of generating: the answers that `prepare` read become rows of the store.

`prepare` takes the dataset of `teacher.*.data.download` as its source, so its prompts are split, deduplicated
and named like any others, and brings each prompt's answer along as its `reference`. Here the answers enter
the store through the normal writer, with the engine `download`. They have no distributions: `score` adds
those.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystill.config.prepared import Prepared
from raystill.config.schema import Config
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.reader import committed_keys
from raystill.store.records import Int32Array, TeacherRow
from raystill.store.requests import Request, save_requests
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter
from raystill.teacher.plan_requests import RequestPlan
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import iter_prompt_batches
from raystill.text.tokenizer import chat_template_sha256, tokenizer_sha256
from raystill.text.tool_schema import offer_tools

ENGINE_NAME = "download"
# Nothing is computed here; the field may not be empty.
_DTYPE = "text"
_NO_IDS: Int32Array = np.empty(0, np.int32)


@dataclass(frozen=True)
class Download:
    """A prepared dataset: the chat format that its texts are tokenised with, and its store's teacher."""

    config: Config
    chat: ChatFormat | None
    identity: StoreIdentity


def identify_download(config: Config, prepared: Prepared, inputs: Mapping[str, str]) -> Download:
    """Who answered: the dataset at its revision, or the local copy by its content (`inputs` of prepare).

    Raises what `load_chat_format` raises.
    """
    chat = _load_chat(config)
    content = inputs.get(f"file:{prepared.path}", "") if prepared.path else ""
    identity = StoreIdentity(
        teacher=prepared.path or prepared.name,
        revision=prepared.revision or content,
        engine=ENGINE_NAME,
        dtype=_DTYPE,
        tokenizer_sha256="" if chat is None else tokenizer_sha256(chat.tokenizer),
        chat_template_sha256="" if chat is None else chat_template_sha256(chat.tokenizer) or "",
        num_logprobs=config.teacher.signals.num_logprobs,
    )
    return Download(config, chat, identity)


def import_answers(download: Download, store: TeacherStore, prompt_table: Path, table: Path) -> RequestPlan:
    """Store the answer of every prompt that the store lacks; one part per `rows_per_part` rows.

    The requests are published in `table`.
    """
    size = download.config.teacher.store.rows_per_part
    requests: list[Request] = []
    keys: dict[int, set[str]] = defaultdict(set)
    known: dict[int, set[str]] = {}
    waiting: dict[int, list[TeacherRow]] = defaultdict(list)
    reused = 0
    with PartWriter(store) as writer:
        for batch in iter_prompt_batches(prompt_table):
            for prompt in batch:
                row = _row_of(download, store, prompt)
                part = partition_of(row.key, store.num_partitions)
                if part not in known:
                    known[part] = committed_keys(store, part)
                if row.key in keys[part]:  # two prompts that render alike are one request
                    continue
                requests.append(Request(row.key, prompt.id, prompt.split))
                keys[part].add(row.key)
                if row.key in known[part]:
                    reused += 1
                    continue
                waiting[part].append(row)
                if len(waiting[part]) >= size:
                    writer.commit_rows(part, waiting.pop(part))
        for part in sorted(waiting):
            writer.commit_rows(part, waiting[part])
    save_requests(table, requests)
    return RequestPlan(table, len(requests), (), reused)


def _row_of(download: Download, store: TeacherStore, prompt: Prompt) -> TeacherRow:
    chat, answer = download.chat, prompt.reference
    assert answer is not None, "prepare rejects rows of a prepared dataset that have no answer"
    messages = json.dumps(prompt.messages, ensure_ascii=False)
    prompt_ids, answer_ids = _NO_IDS, _NO_IDS
    if chat is not None:
        prompt_ids = np.asarray(chat.render_prompt_ids(prompt.messages), np.int32)
        answer_ids = np.asarray([*chat.encode_completion(answer), chat.turn_end_id], np.int32)
    named = messages if chat is None else prompt_ids
    return TeacherRow(
        key=request_key(download.identity, named, {"answer": answer}, seed=0),
        prompt_id=prompt.id,
        split=prompt.split,
        source=prompt.source,
        messages=messages,
        prompt_token_ids=prompt_ids,
        completion=answer,
        completion_token_ids=answer_ids,
        finish_reason="stop",
        flags=("imported",),
        teacher_id=store.identity.teacher_id,
        sample_index=0,
        seconds=0.0,
    )


def _load_chat(config: Config) -> ChatFormat | None:
    tools, closed, opened = config.teacher.base.tool_schema, config.teacher.closed, config.teacher.open
    if closed is not None:
        tokenizer = closed.model.tokenizer
        return None if tokenizer is None else offer_tools(load_chat_format(tokenizer), tools)
    assert opened is not None
    chat = load_chat_format(
        opened.model.name,
        opened.model.revision,
        opened.model.trust_remote_code,
        opened.tokenizer.use_fast,
    )
    return offer_tools(chat, tools)
