"""A prepared dataset instead of generating: the answers that `prepare` read become rows of the store.

`prepare` takes the dataset of `teacher.*.data.download` as its source, so its prompts are split, deduplicated
and named like any others, and brings each prompt's answer along as its `reference`. Here the answers enter
the store through the normal writer, with the engine `download`. They have no distributions: `score` adds
those.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raystill.config.prepared import Prepared
from raystill.config.schema import Config
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.known_keys import KnownKeys
from raystill.store.records import Int32Array, TeacherRow
from raystill.store.requests import REQUEST_SCHEMA
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.request_list import publish_requests
from raystill.teacher.spill import PartitionSpill
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


def import_answers(
    download: Download, store: TeacherStore, prompt_table: Path, table: Path, scratch: Path
) -> RequestPlan:
    """Store the answer of every prompt that the store lacks; one part per `rows_per_part` rows.

    The requests are published in `table`, by way of `scratch`. Memory: the rows that wait for a full part,
    and 16 bytes per row of the store.
    """
    size = download.config.teacher.store.rows_per_part
    listing = PartitionSpill(scratch, REQUEST_SCHEMA, store.num_partitions)
    known = KnownKeys(store)
    waiting: dict[int, list[TeacherRow]] = defaultdict(list)
    imported = 0
    with PartWriter(store) as writer:
        for batch in iter_prompt_batches(prompt_table):
            rows = [_row_of(download, store, prompt) for prompt in batch]
            listing.add(_requests_of(rows))
            # Two prompts that render alike are one request.
            is_new = known.add_new([row.key for row in rows])
            imported += int(is_new.sum())
            for row in (row for row, new in zip(rows, is_new, strict=True) if new):
                part = partition_of(row.key, store.num_partitions)
                waiting[part].append(row)
                if len(waiting[part]) >= size:
                    writer.commit_rows(part, waiting.pop(part))
        for part in sorted(waiting):
            writer.commit_rows(part, waiting[part])
    num_requests = publish_requests(table, listing)
    return RequestPlan(table, num_requests, (), num_requests - imported)


def _requests_of(rows: Sequence[TeacherRow]) -> pa.Table:
    requests = [{name: getattr(row, name) for name in REQUEST_SCHEMA.names} for row in rows]
    return pa.Table.from_pylist(requests, schema=REQUEST_SCHEMA)


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
