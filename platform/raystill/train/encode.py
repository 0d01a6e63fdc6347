"""From stored teacher outputs to training examples: which rows train, what is left out, and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.store.reader import load_rows, unscored_keys
from raystill.store.records import Int32Array, TeacherRow, TopKSignal
from raystill.store.scorer import signal_identity
from raystill.store.store import TeacherStore
from raystill.text.answer_ids import encode_answer
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import (
    chat_template_sha256,
    compare_tokenizers,
    load_tokenizer,
    tokenizer_sha256,
)
from raystill.train.examples import Example, ExampleSet
from raystill.train.selection import TrainingRows
from raystill.train.settings import TrainSettings

_COMPLETE = "stop"
# What an endpoint refused or withheld would teach the student to refuse.
_FILTERED = "content_filter"


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, rows held out for the evaluation loss, and counts by what happened to each row."""

    train: ExampleSet
    held_out: ExampleSet
    counts: dict[str, int]


@dataclass(frozen=True)
class TokenMatch:
    """How a student's tokens relate to the stored ones.

    `same_ids`: stored completion ids mean the same to the student. `same_template`: stored prompts are
    rendered as the student's own template would.
    """

    same_ids: bool
    same_template: bool


def match_tokenizers(config: Config, store: TeacherStore, chat: ChatFormat, needs_signal: bool) -> TokenMatch:
    """Compare the student's tokenizer with the one that the store was written with, or, where the KD term
    needs the stored logprobs, with their scorer's.

    Equal ids with extra entries on one side (a padded vocabulary) are accepted. Raises DataError if the KD
    term needs the stored logprobs and the ids mean different things.
    """
    identity = signal_identity(store) if needs_signal else store.identity
    if not identity.tokenizer_sha256 and not needs_signal:  # all rows are text
        return TokenMatch(same_ids=False, same_template=False)
    template = chat_template_sha256(chat.tokenizer) or ""
    same_template = template == identity.chat_template_sha256
    if tokenizer_sha256(chat.tokenizer) == identity.tokenizer_sha256:
        return TokenMatch(same_ids=True, same_template=same_template)
    why = "their hashes differ, and the teacher's tokenizer isn't at hand to compare them"
    if config.teacher.open is not None:
        model = config.teacher.open.model
        teacher = load_tokenizer(model.name, model.revision, model.trust_remote_code)
        if tokenizer_sha256(teacher) == identity.tokenizer_sha256:
            comparison = compare_tokenizers(teacher, chat.tokenizer)
            if comparison.compatible:
                return TokenMatch(same_ids=True, same_template=same_template)
            why = comparison.describe()
    if needs_signal:
        raise DataError(
            f"the teacher's logprobs can't teach this student: their tokenizers differ ({why})",
            where="student.tokenizer",
            fix="give the student the teacher's tokenizer, or train on the text alone: train.sft, or "
            "losses.kl_weight: 0",
        )
    return TokenMatch(same_ids=False, same_template=same_template)


def load_training_data(
    store: TeacherStore,
    wanted: TrainingRows,
    settings: TrainSettings,
    chat: ChatFormat,
    match: TokenMatch,
    *,
    vocab_size: int,
    context: int,
) -> TrainingData:
    """Encode the stored rows that are `wanted`, leave out what can't train, hold out a share for eval/loss.

    Rows longer than max_seq_len or the model's `context` are left out (or cut, with truncation on). Raises
    DataError if nothing is left to train on, with the counts that say why. A row whose completion was
    redacted has no signal: KD leaves it out, SFT tokenises its new text.
    """
    needs_signal = settings.terms.kl_weight > 0
    keys = wanted.keys - set(wanted.redacted) if needs_signal else wanted.keys
    encoder = RowEncoder(settings, chat, match, vocab_size, min(settings.max_seq_len, context))
    rows = load_rows(
        store,
        keys=keys,
        with_signal=needs_signal,
        num_logprobs=settings.num_logprobs if needs_signal else None,
    )
    encoded = [
        (row.prompt_id, example)
        for row in rows
        if (example := encoder.encode(row, wanted.redacted.get(row.key))) is not None
    ]
    held_out = choose_held_out([prompt_id for prompt_id, _ in encoded], settings)
    data = TrainingData(
        train=ExampleSet([example for prompt_id, example in encoded if prompt_id not in held_out]),
        held_out=ExampleSet([example for prompt_id, example in encoded if prompt_id in held_out]),
        counts=dict(encoder.counts),
    )
    data.counts.update(rows_train=len(data.train), rows_held_out=len(data.held_out))
    if needs_signal:
        unscored = (unscored_keys(store, partition) for partition in range(store.num_partitions))
        data.counts["left_out_unscored"] = sum(len(found & keys) for found in unscored)
        data.counts["left_out_redacted"] = len(wanted.redacted)
    _require_tokens(data, store)
    return data


def choose_held_out(prompt_ids: list[str], settings: TrainSettings) -> frozenset[str]:
    """Prompts for the evaluation loss: test_size of the distinct ones, by a seeded hash, so that all samples
    of a prompt fall on one side. None where the evaluation is off or there is only one prompt."""
    distinct = set(prompt_ids)
    if settings.eval_strategy == "no" or len(distinct) < 2:
        return frozenset()
    count = min(max(round(settings.test_size * len(distinct)), 1), len(distinct) - 1)

    def draw(prompt_id: str) -> bytes:
        return hashlib.sha256(f"{settings.data_seed}:{prompt_id}".encode()).digest()

    return frozenset(sorted(distinct, key=draw)[:count])


class RowEncoder:
    """Turns teacher rows into examples and counts what happens to them."""

    def __init__(
        self, settings: TrainSettings, chat: ChatFormat, match: TokenMatch, vocab_size: int, max_tokens: int
    ) -> None:
        self._settings = settings
        self._chat = chat
        self._match = match
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self.counts: Counter[str] = Counter()

    def encode(self, row: TeacherRow, redacted: str | None = None) -> Example | None:
        """The example of `row`, or None where it is left out; `redacted` replaces its completion.

        Raises DataError for ids out of vocabulary.
        """
        self.counts["rows_read"] += 1
        if row.finish_reason == _FILTERED:
            self.counts["left_out_content_filter"] += 1
            return None
        prompt_ids, completion_ids = self._token_ids(row, redacted)
        signal = row.signal if self._settings.terms.kl_weight > 0 else None
        if len(completion_ids) == 0 or len(prompt_ids) + len(completion_ids) < 2:
            self.counts["left_out_empty"] += 1
            return None
        length = len(prompt_ids) + len(completion_ids)
        if length > self._max_tokens:
            kept = self._max_tokens - len(prompt_ids)
            if not self._settings.truncate or kept <= 0:
                self.counts["left_out_too_long"] += 1
                return None
            completion_ids = completion_ids[:kept]
            signal = None if signal is None else _cut_signal(signal, kept)
            self.counts["rows_truncated"] += 1
        token_ids = np.concatenate([prompt_ids, completion_ids]).astype(np.int32, copy=False)
        self._check_ids(token_ids, row)
        if row.finish_reason != _COMPLETE:
            self.counts[f"rows_finish_{row.finish_reason}"] += 1
        for flag in row.flags:
            self.counts[f"rows_flag_{flag}"] += 1
        signal = None if signal is None else fold_into_tail(signal, self._vocab_size)
        return Example(token_ids, len(prompt_ids), signal)

    def _token_ids(self, row: TeacherRow, redacted: str | None) -> tuple[Int32Array, Int32Array]:
        """Prompt and completion in the student's tokens, as the student's own template renders them."""
        is_text = len(row.completion_token_ids) == 0 and row.signal is None
        is_text = is_text and bool(row.completion or row.tool_calls)
        has_ids = self._match.same_ids and not is_text
        if redacted is None and has_ids and self._match.same_template:
            return row.prompt_token_ids, row.completion_token_ids
        messages = json.loads(row.messages)
        if redacted is None and has_ids:
            prompt_ids = np.array(self._chat.render_prompt_ids(messages), dtype=np.int32)
            self.counts["rows_prompt_rendered_again"] += 1
            return prompt_ids, row.completion_token_ids
        self.counts["rows_tokenised_again" if redacted is None else "rows_redacted"] += 1
        if redacted is None and row.tool_calls is not None:
            return self._spell_calls(row, messages)
        text = row.completion if redacted is None else redacted
        input_ids, loss_mask = self._chat.training_example(messages, text)
        prompt_length = len(loss_mask) - sum(loss_mask)
        # A completion that ran into its limit has no end: teaching one would teach stopping in mid-sentence.
        stop = len(input_ids) if row.finish_reason == _COMPLETE else len(input_ids) - 1
        token_ids = np.array(input_ids[:stop], dtype=np.int32)
        return token_ids[:prompt_length], token_ids[prompt_length:]

    def _spell_calls(self, row: TeacherRow, messages: list[dict[str, str]]) -> tuple[Int32Array, Int32Array]:
        """A tool call in the student's own spelling; empty where its template has none."""
        try:
            ids = encode_answer(self._chat, messages, row.completion, row.tool_calls, row.finish_reason)
        except DataError:
            self.counts["rows_calls_not_written"] += 1
            ids = [], []
        return np.array(ids[0], np.int32), np.array(ids[1], np.int32)

    def _check_ids(self, token_ids: Int32Array, row: TeacherRow) -> None:
        largest = int(token_ids.max())
        if largest >= self._vocab_size or int(token_ids.min()) < 0:
            raise DataError(
                f"token {largest} is outside the student's vocabulary of {self._vocab_size}",
                where=f"row {row.key}",
                fix="raise student.vocab_size, or unset it to take the tokenizer's",
            )


def fold_into_tail(signal: TopKSignal, vocab_size: int) -> TopKSignal:
    """Move stored tokens that the student has no logit for (padding of the teacher's head) into the tail."""
    foreign_TK = signal.topk_ids_TK >= vocab_size
    if not foreign_TK.any():
        return signal
    logprobs_TK = signal.topk_logprobs_TK.astype(np.float32)
    moved_T = np.where(foreign_TK, np.exp(logprobs_TK), 0.0).sum(axis=1)
    with np.errstate(divide="ignore"):
        tail_T = np.log(np.exp(signal.tail_logprob_T) + moved_T).astype(np.float32)
    return TopKSignal(
        topk_ids_TK=np.where(foreign_TK, 0, signal.topk_ids_TK).astype(np.int32),
        topk_logprobs_TK=np.where(foreign_TK, -np.inf, logprobs_TK).astype(np.float16),
        sampled_logprob_T=signal.sampled_logprob_T,
        tail_logprob_T=tail_T,
    )


def _cut_signal(signal: TopKSignal, length: int) -> TopKSignal:
    return TopKSignal(
        topk_ids_TK=signal.topk_ids_TK[:length],
        topk_logprobs_TK=signal.topk_logprobs_TK[:length],
        sampled_logprob_T=signal.sampled_logprob_T[:length],
        tail_logprob_T=signal.tail_logprob_T[:length],
    )


def _require_tokens(data: TrainingData, store: TeacherStore) -> None:
    if int(data.train.num_loss_tokens.sum()) > 0:
        return
    counts = ", ".join(f"{name} {count}" for name, count in sorted(data.counts.items())) or "no rows"
    raise DataError(
        f"no token carries loss, so there is nothing to train on ({counts})",
        where=str(store.path),
        fix="raise training.max_seq_len if rows are too long; check the prompts' split and the store's rows",
    )
