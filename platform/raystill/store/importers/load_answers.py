"""Imported answers become rows of a store: keyed, checked, deduplicated, committed by the normal writer.

The key of an imported answer covers the answer itself beside the prompt and the sampling: nobody asks for it
again, and two different answers to one prompt are two rows. So importing a file twice adds nothing, and an
import that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from raystill.errors import DataError
from raystill.store.codec import view_signal
from raystill.store.conversations import ID_LENGTH, conversation_id
from raystill.store.identity import KEY_LENGTH, request_key
from raystill.store.importers.answer import BadAnswer, ImportedAnswer
from raystill.store.importers.waiting_rows import WaitingRows
from raystill.store.known_keys import KnownKeys
from raystill.store.records import Reject, TeacherRow
from raystill.store.selfcheck import check_rows
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter

# Answers held as objects, and the signals among them, before they become columns.
BUFFERED_ROWS = 4096
BUFFERED_SIGNAL_ENTRIES = 16_000_000


@dataclass
class ImportCounts:
    """What became of the rows of the files: `num_read` is the sum of the other three.

    `num_known` were in the store already, or stood in the files twice.
    """

    num_read: int = 0
    num_added: int = 0
    num_known: int = 0
    num_rejected: int = 0
    num_signals: int = 0
    rejects_by_code: dict[str, int] = field(default_factory=dict)


def load_answers(
    store: TeacherStore,
    answers: Iterable[ImportedAnswer | BadAnswer],
    *,
    split: str = "train",
    num_logprobs: int | None = None,
) -> ImportCounts:
    """Commit what the store lacks; returns the counts. Peak memory: `BUFFERED_ROWS`, the rows that wait for
    their part (`WaitingRows`), and 16 bytes per row of the store.

    `split` and `source` are the file's where it names them. Signals are cut to `num_logprobs`. A row whose
    signal contradicts it becomes a reject. Raises EnvironmentFault for a full disk.
    """
    with PartWriter(store) as writer:
        loader = _Loader(store, writer, split, num_logprobs)
        for answer in answers:
            loader.add(answer)
        loader.finish()
    return loader.counts


class _Loader:
    """Buffers rows and rejects; knows the keys that are stored, to tell what is new."""

    def __init__(self, store: TeacherStore, writer: PartWriter, split: str, num_logprobs: int | None) -> None:
        self.counts = ImportCounts()
        self._store = store
        self._split = split
        self._num_logprobs = num_logprobs
        self._rows: list[TeacherRow] = []
        self._rejects: list[Reject] = []
        self._entries = 0
        self._waiting = WaitingRows(store, writer)
        self._known_rows, self._known_rejects = KnownKeys(store), KnownKeys(store, "rejects")

    def add(self, answer: ImportedAnswer | BadAnswer) -> None:
        """Take one row of a file."""
        self.counts.num_read += 1
        if isinstance(answer, BadAnswer):
            self._add_reject(answer)
            return
        try:
            row = self._row_of(answer)
        except UnicodeEncodeError as error:
            reason = f"its text is not valid Unicode: {error.reason}"
            self._add_reject(BadAnswer(answer.where, "not_unicode", reason, str(error.object)))
            return
        try:
            check_rows([row])
        except DataError as error:
            reason = f"{error.problems[0].what} ({error.problems[0].where.rpartition(', ')[2]})"
            content = row.key
            self._add_reject(BadAnswer(answer.where, "signal", reason, content, row.prompt_id))
            return
        self._rows.append(row)
        if row.signal is not None:
            self._entries += row.signal.topk_ids_TK.size
        self._count_buffered()

    def finish(self) -> None:
        """Commit everything that waits."""
        self._flush()
        self._waiting.commit()

    def _flush(self) -> None:
        """Send what is new on its way into parts."""
        is_new = self._known_rows.add_new([row.key for row in self._rows])
        rows = [row for row, new in zip(self._rows, is_new, strict=True) if new]
        self.counts.num_added += len(rows)
        self.counts.num_known += len(self._rows) - len(rows)
        self.counts.num_signals += sum(row.signal is not None for row in rows)
        is_new = self._known_rejects.add_new([reject.key for reject in self._rejects])
        self._waiting.add(rows, [each for each, new in zip(self._rejects, is_new, strict=True) if new])
        self._rows, self._rejects, self._entries = [], [], 0

    def _add_reject(self, bad: BadAnswer) -> None:
        self.counts.num_rejected += 1
        codes = self.counts.rejects_by_code
        codes[bad.code] = codes.get(bad.code, 0) + 1
        name = f"import\0{self._store.identity.teacher_id}\0{bad.code}\0{bad.content}"
        key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]
        reason = f"{bad.where}: {bad.reason}".encode("utf-8", "backslashreplace").decode("utf-8")
        prompt_id = bad.prompt_id.encode("utf-8", "backslashreplace").decode("utf-8")
        self._rejects.append(Reject(key, prompt_id, "generate", bad.code, reason, attempts=1))
        self._count_buffered()

    def _count_buffered(self) -> None:
        is_full = len(self._rows) + len(self._rejects) >= BUFFERED_ROWS
        if is_full or self._entries >= BUFFERED_SIGNAL_ENTRIES:
            self._flush()

    def _row_of(self, answer: ImportedAnswer) -> TeacherRow:
        signal = answer.signal
        if signal is not None and self._num_logprobs is not None and signal.num_logprobs > self._num_logprobs:
            signal = view_signal(signal, self._num_logprobs)
        for text in (answer.completion, answer.reasoning, answer.tool_calls, answer.prompt_id, answer.source):
            (text or "").encode("utf-8")  # a lone surrogate can't be stored
        messages = json.dumps(answer.messages, ensure_ascii=False)
        messages.encode("utf-8")
        return TeacherRow(
            key=request_key(
                self._store.identity,
                answer.prompt,
                {**answer.sampling, "answer_sha256": answer.content_sha256()},
                seed=answer.seed,
                sample_index=answer.sample_index,
            ),
            prompt_id=answer.prompt_id or _content_id(answer),
            split=answer.split or self._split,
            source=answer.source or self._store.identity.engine,
            messages=messages,
            prompt_token_ids=answer.prompt_token_ids,
            completion=answer.completion,
            completion_token_ids=answer.completion_token_ids,
            finish_reason=answer.finish_reason,
            flags=answer.flags,
            teacher_id=self._store.identity.teacher_id,
            sample_index=answer.sample_index,
            seconds=0.0,
            reasoning=answer.reasoning,
            tool_calls=answer.tool_calls,
            usage=answer.usage,
            signal=signal,
        )


def _content_id(answer: ImportedAnswer) -> str:
    """The prompt table's own name for this conversation, so that both sides meet."""
    if not answer.messages:
        return hashlib.sha256(answer.prompt_token_ids.astype("<i4").tobytes()).hexdigest()[:ID_LENGTH]
    return conversation_id(answer.messages)
