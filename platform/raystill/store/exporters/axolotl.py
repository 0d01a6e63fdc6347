"""A store as Axolotl's offline distillation dataset: `messages`, and `logprobs` for the answer's tokens.

Axolotl aligns logprobs with the end of the rendered conversation. Where the chat template writes something
after the token that ends the answer, each such token needs an entry: give the tokenizer, and they are added
(Axolotl puts no loss on them). Columns that Axolotl ignores let our importer restore the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raystill.run.publish import publish_file
from raystill.store.exporters.openai_batch import token_entries
from raystill.store.exporters.rows import (
    answer_message,
    dump_line,
    iter_sorted_rows,
    prompt_messages,
    provenance,
)
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.store import TeacherStore
from raystill.text.chat import ChatFormat

_OPTIONAL = ("reasoning", "tool_calls")


def export_axolotl(store: TeacherStore, path: Path, chat: ChatFormat | None) -> int:
    """Write JSON lines to `path`, atomically; returns how many. Rows without tokens are left out.

    Equal stores give equal bytes. Raises DataError where a row has no signal.
    """
    count = 0
    with publish_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in iter_sorted_rows(store, with_signal=True):
            if row.signal is not None and len(row.completion_token_ids):
                stream.write(dump_line(_record(row, row.signal, chat)))
                count += 1
    return count


def _record(row: TeacherRow, signal: TopKSignal, chat: ChatFormat | None) -> dict[str, Any]:
    messages = [*prompt_messages(row), answer_message(row)]
    entries = token_entries(signal)
    # Any distribution does where there is no loss; the last one has the right width.
    entries += entries[-1:] * (0 if chat is None else _num_after(row, messages, chat))
    return {
        "id": row.key,
        "messages": messages,
        "logprobs": entries,
        "sampled_logprobs": signal.sampled_logprob_T.tolist(),
        "prompt_token_ids": row.prompt_token_ids.tolist(),
        "completion_token_ids": row.completion_token_ids.tolist(),
        "finish_reason": row.finish_reason,
        "sample_index": row.sample_index,
        **provenance(row),
        **{name: value for name in _OPTIONAL if (value := getattr(row, name))},
    }


def _num_after(row: TeacherRow, messages: list[dict[str, Any]], chat: ChatFormat) -> int:
    """Tokens that the chat template writes after the answer's last one."""
    rendered = chat.render_prompt_ids(messages, add_generation_prompt=False)
    return max(0, len(rendered) - len(row.prompt_token_ids) - len(row.completion_token_ids))
