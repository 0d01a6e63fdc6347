"""From stored teacher outputs to training examples: which rows train, what is left out, and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.errors import DataError
from raystill.store.content import content_digest
from raystill.store.layout import KINDS
from raystill.store.reader import load_rows, unscored_keys
from raystill.store.records import Int32Array, TeacherRow
from raystill.store.store import TeacherStore
from raystill.store.tier_reader import keys_without_tier, load_hidden, load_sampled
from raystill.store.tier_records import HiddenSignal, SampledSignal
from raystill.text.answer_ids import encode_answer
from raystill.text.assistant_turns import find_assistant_turns
from raystill.text.chat import ChatFormat
from raystill.text.token_match import TokenMatch
from raystill.text.tokenizer import chat_template_sha256, tokenizer_sha256
from raystill.text.vocabulary import MISSING
from raystill.train.example_cache import VERSION, load_arrays, save_arrays
from raystill.train.examples import Example, ExampleSet, Int64Array
from raystill.train.render_check import check_rendering
from raystill.train.row_lengths import RowLengths
from raystill.train.selection import TrainingRows
from raystill.train.settings import TrainSettings
from raystill.train.signal_arrays import cut_signal, fit_signal, ids_of, rename_ids
from raystill.train.tokenise import TextRow, iter_tokenised

_COMPLETE = "stop"
# What an endpoint refused or withheld would teach the student to refuse.
_FILTERED = "content_filter"


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, rows held out for the evaluation loss, counts by what happened to each row, and what
    the user should hear about."""

    train: ExampleSet
    held_out: ExampleSet
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


def load_training_data(
    store: TeacherStore,
    wanted: TrainingRows,
    settings: TrainSettings,
    chat: ChatFormat,
    match: TokenMatch,
    *,
    vocab_size: int,
    context: int,
    cache: Path | None = None,
) -> TrainingData:
    """Encode the stored rows that are `wanted`, leave out what can't train, hold out a share for eval/loss.

    Rows longer than max_seq_len or the model's `context` are left out (or cut, with truncation on). Raises
    DataError if nothing is left to train on, with the counts that say why, or if a stored prompt is not what
    the student will be served. A row whose completion was redacted has no signal: KD leaves it out, SFT
    tokenises its new text. What was encoded before is taken from the directory `cache`.
    """
    encoder = RowEncoder(settings, chat, match, vocab_size, min(settings.max_seq_len, context))
    fingerprint = encoder.fingerprint(store, wanted) if cache is not None else ""
    found = load_arrays(cache, fingerprint) if cache is not None else None
    if found is not None:
        return _from_cache(*found)
    data = _encode_rows(store, wanted, encoder)
    _require_tokens(data, store)
    if cache is not None:
        _save_to_cache(cache, fingerprint, data)
    return data


def _encode_rows(store: TeacherStore, wanted: TrainingRows, encoder: RowEncoder) -> TrainingData:
    settings = encoder.settings
    needs_signal = settings.reads_stored_signals
    keys = wanted.keys - set(wanted.redacted) if needs_signal else wanted.keys
    unscored = _unscored_keys(store, settings) & keys if needs_signal else set()
    needs_topk = needs_signal and settings.signal_kind == "topk"
    if needs_signal and not needs_topk:
        keys = keys - unscored
        encoder.tier = _load_tier(store, settings, keys)
    rows = load_rows(
        store,
        keys=keys,
        with_signal=needs_topk,
        num_logprobs=settings.num_logprobs if needs_topk else None,
    )
    encoded = encoder.encode_all(rows, wanted.redacted)
    held_out = choose_held_out([prompt_id for prompt_id, _ in encoded], settings)
    data = TrainingData(
        train=ExampleSet([example for prompt_id, example in encoded if prompt_id not in held_out]),
        held_out=ExampleSet([example for prompt_id, example in encoded if prompt_id in held_out]),
        counts=dict(encoder.counts),
        notes=(*wanted.describe_cut_off(), *encoder.lengths.describe_loss()),
    )
    data.counts.update(rows_train=len(data.train), rows_held_out=len(data.held_out))
    if needs_signal:
        data.counts["left_out_unscored"] = len(unscored)
        data.counts["left_out_redacted"] = len(wanted.redacted)
    if wanted.num_cut_off:
        data.counts["left_out_cut_off"] = wanted.num_cut_off
    return data


def _unscored_keys(store: TeacherStore, settings: TrainSettings) -> set[str]:
    kind = settings.signal_kind
    partitions = range(store.num_partitions)
    if kind == "topk":
        return {key for partition in partitions for key in unscored_keys(store, partition)}
    return {key for partition in partitions for key in keys_without_tier(store, partition, kind)}


def _load_tier(
    store: TeacherStore, settings: TrainSettings, keys: AbstractSet[str]
) -> Mapping[str, SampledSignal | HiddenSignal]:
    return load_sampled(store, keys) if settings.signal_kind == "sampled" else load_hidden(store, keys)


def _save_to_cache(cache: Path, fingerprint: str, data: TrainingData) -> None:
    sets = {"train": data.train, "held_out": data.held_out}
    arrays = {f"{name}.{key}": a for name, part in sets.items() for key, a in part.to_arrays().items()}
    names = {name: part.source_names for name, part in sets.items()}
    save_arrays(
        cache, fingerprint, arrays, {"counts": data.counts, "notes": data.notes, "source_names": names}
    )


def _from_cache(arrays: Mapping[str, npt.NDArray[Any]], facts: Any) -> TrainingData:
    def part(name: str) -> ExampleSet:
        own = {key.removeprefix(f"{name}."): a for key, a in arrays.items() if key.startswith(f"{name}.")}
        return ExampleSet.from_arrays(own, facts["source_names"][name])

    return TrainingData(part("train"), part("held_out"), dict(facts["counts"]), tuple(facts["notes"]))


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
        self.settings = settings
        self._chat = chat
        self._match = match
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self.lengths = RowLengths(max_tokens, truncate=settings.truncate)
        self._reads_signals = settings.reads_stored_signals
        self._tokenised: dict[str, tuple[Int32Array, Int32Array]] = {}
        self.counts: Counter[str] = Counter()
        # Signals by row key, where they aren't a top k.
        self.tier: Mapping[str, SampledSignal | HiddenSignal] = {}

    def fingerprint(self, store: TeacherStore, wanted: TrainingRows) -> str:
        """Hex sha256 of all that the encoded rows depend on; needs no row."""
        settings, chat = self.settings, self._chat
        facts = [
            VERSION,
            content_digest(store, KINDS),
            sorted(wanted.keys),
            [sorted(wanted.redacted.items()), wanted.num_cut_off],
            [self._vocab_size, self._max_tokens, vars(self._match)],
            [
                settings.reads_stored_signals,
                settings.signal_kind,
                settings.num_logprobs,
                settings.truncate,
                settings.loss_on,
            ],
            [settings.eval_strategy == "no", settings.test_size, settings.data_seed],
            [tokenizer_sha256(chat.tokenizer), chat_template_sha256(chat.tokenizer)],
            [chat.eos_token_ids, chat.tools],
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def encode_all(
        self, rows: Sequence[TeacherRow], redacted: Mapping[str, str]
    ) -> list[tuple[str, Example]]:
        """Prompt id and example of every row that trains, in order. Raises DataError as `encode` does."""
        as_stored = [
            row for row in rows if self._keeps_ids(row, redacted.get(row.key)) and self._match.same_template
        ]
        check_rendering(self._chat, as_stored)
        texts = (
            TextRow(row, redacted.get(row.key, row.completion))
            for row in rows
            if self._is_tokenised(row, redacted.get(row.key))
        )
        for item, prompt_ids, completion_ids in iter_tokenised(self._chat, texts):
            self._tokenised[item.row.key] = prompt_ids, completion_ids
        pairs = [(row.prompt_id, self.encode(row, redacted.get(row.key))) for row in rows]
        return [(prompt_id, example) for prompt_id, example in pairs if example is not None]

    def encode(self, row: TeacherRow, redacted: str | None = None) -> Example | None:
        """The example of `row`, or None where it is left out; `redacted` replaces its completion.

        Raises DataError for ids out of vocabulary.
        """
        self.counts["rows_read"] += 1
        if row.finish_reason == _FILTERED:
            self.counts["left_out_content_filter"] += 1
            return None
        prompt_ids, completion_ids = self._token_ids(row, redacted)
        signal = self.tier.get(row.key, row.signal) if self._reads_signals else None
        if len(completion_ids) == 0 or len(prompt_ids) + len(completion_ids) < 2:
            self.counts["left_out_empty"] += 1
            return None
        if int(completion_ids.max()) == MISSING:
            self.counts["left_out_foreign_token"] += 1
            return None
        length = len(prompt_ids) + len(completion_ids)
        kept = self.lengths.add(len(prompt_ids), len(completion_ids))
        if length > self._max_tokens:
            if kept == 0:
                self.counts["left_out_too_long"] += 1
                return None
            completion_ids = completion_ids[:kept]
            signal = None if signal is None else cut_signal(signal, kept)
            self.counts["rows_truncated"] += 1
        token_ids = np.concatenate([prompt_ids, completion_ids]).astype(np.int32, copy=False)
        self._check_ids(token_ids, row)
        if row.finish_reason != _COMPLETE:
            self.counts[f"rows_finish_{row.finish_reason}"] += 1
        for flag in row.flags:
            self.counts[f"rows_flag_{flag}"] += 1
        if signal is not None and self._match.translation is not None:
            signal = rename_ids(signal, self._match.translation.translate(ids_of(signal)))
        signal = None if signal is None else fit_signal(signal, self._vocab_size)
        return Example(
            token_ids, len(prompt_ids), signal, self._earlier_turns(row, prompt_ids), source=row.source
        )

    def _keeps_ids(self, row: TeacherRow, redacted: str | None) -> bool:
        """Whether the stored completion ids are the student's."""
        is_text = len(row.completion_token_ids) == 0 and row.signal is None
        is_text = is_text and bool(row.completion or row.tool_calls)
        return redacted is None and self._match.same_ids and not is_text

    def _is_tokenised(self, row: TeacherRow, redacted: str | None) -> bool:
        """Whether the completion is tokenised as text, which a tool call isn't."""
        if row.finish_reason == _FILTERED or self._keeps_ids(row, redacted):
            return False
        return redacted is not None or row.tool_calls is None

    def _token_ids(self, row: TeacherRow, redacted: str | None) -> tuple[Int32Array, Int32Array]:
        """Prompt and completion in the student's tokens, as the student's own template renders them."""
        keeps_ids = self._keeps_ids(row, redacted)
        if keeps_ids and self._match.same_template:
            return row.prompt_token_ids, row.completion_token_ids
        messages = json.loads(row.messages)
        if keeps_ids:
            prompt_ids = np.array(self._chat.render_prompt_ids(messages), dtype=np.int32)
            self.counts["rows_prompt_rendered_again"] += 1
            translation = self._match.translation
            completion_ids = row.completion_token_ids
            return prompt_ids, completion_ids if translation is None else translation.translate(
                completion_ids
            )
        self.counts["rows_tokenised_again" if redacted is None else "rows_redacted"] += 1
        if redacted is None and row.tool_calls is not None:
            return self._spell_calls(row, messages)
        if row.key not in self._tokenised:
            self._tokenise(row, redacted)
        prompt_ids, completion_ids = self._tokenised.pop(row.key)
        # A completion that ran into its limit has no end: teaching one would teach stopping in mid-sentence.
        ending = [self._chat.turn_end_id] if row.finish_reason == _COMPLETE else []
        return prompt_ids, np.append(completion_ids, np.array(ending, dtype=np.int32))

    def _tokenise(self, row: TeacherRow, redacted: str | None) -> None:
        text = row.completion if redacted is None else redacted
        for _, prompt_ids, completion_ids in iter_tokenised(self._chat, [TextRow(row, text)]):
            self._tokenised[row.key] = prompt_ids, completion_ids

    def _earlier_turns(self, row: TeacherRow, prompt_ids: Int32Array) -> Int64Array:
        """Places in the prompt that carry loss: what an assistant wrote there, with loss_on: assistant."""
        if self.settings.loss_on == "completion":
            return np.zeros(0, dtype=np.int64)
        places = find_assistant_turns(self._chat, json.loads(row.messages), prompt_ids.tolist())
        if places is None:
            self.counts["rows_turns_not_found"] += 1
        return np.array([place for place in places or [] if place > 0], dtype=np.int64)

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


def _require_tokens(data: TrainingData, store: TeacherStore) -> None:
    if int(data.train.num_loss_tokens.sum()) > 0:
        return
    counts = ", ".join(f"{name} {count}" for name, count in sorted(data.counts.items())) or "no rows"
    fix = "raise training.max_seq_len if rows are too long; check the prompts' split and the store's rows"
    if data.counts.get("left_out_cut_off"):
        fix = (
            "raise max_new_tokens and generate again, or train on cut-off completions: "
            "teacher.base.cut_off: train"
        )
    raise DataError(
        f"no token carries loss, so there is nothing to train on ({counts})",
        where=str(store.path),
        fix=fix,
    )
