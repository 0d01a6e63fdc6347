"""From rows to examples: what carries loss, what is left out, and which tokenizers go together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raystill.errors import DataError
from raystill.store.identity import partition_of
from raystill.store.reader import load_rows
from raystill.store.records import Reject, Score, ScoredIds
from raystill.store.scorer import record_scorer
from raystill.store.signal_ids import fold_into_tail
from raystill.store.store import load_store, open_store
from raystill.store.writer import PartWriter
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.token_match import TokenMatch
from raystill.train.batches import collate
from raystill.train.encode import (
    RowEncoder,
    TrainingData,
    choose_held_out,
    load_training_data,
)
from raystill.train.examples import Example, ExampleSet
from raystill.train.selection import TrainingRows
from raystill.train.settings import TrainSettings, resolve_settings
from raystill.train.token_match import match_tokenizers

SAME = TokenMatch(same_ids=True, same_template=True)


def settings(world: Any, stage: Any = "distill", **sections: Any) -> TrainSettings:
    return resolve_settings(world.config(**sections), stage)


def encoder(world: Any, stage: Any = "distill", match: TokenMatch = SAME, **sections: Any) -> RowEncoder:
    return RowEncoder(settings(world, stage, **sections), world.chat, match, 259, 128)


def test_the_loss_covers_the_completion_and_its_eos_and_nothing_else(empty_world: Any, rows: Any) -> None:
    chat: ChatFormat = empty_world.chat
    row = rows[3]
    example = encoder(empty_world).encode(row)
    assert example is not None
    batch = collate(ExampleSet([example]), np.array([0]), 256, torch.device("cpu"))
    assert chat.decode(batch.target_ids_N.tolist()) == row.completion
    assert batch.target_ids_N[-1] == chat.tokenizer.eos_token_id
    flat = batch.input_ids_BT.flatten()
    shown = [*flat[: int(batch.loss_index_N[0]) + 1].tolist()]
    assert shown == row.prompt_token_ids.tolist()
    assert flat[batch.loss_index_N[1:]].tolist() == batch.target_ids_N[:-1].tolist()


def test_signals_stand_at_their_tokens_whatever_the_batch(empty_world: Any, rows: Any) -> None:
    """The teacher's best token is the completion's in these rows, so argmax spells the completions."""
    make = encoder(empty_world)
    examples = ExampleSet([e for row in rows[:7] if (e := make.encode(row)) is not None])
    for chosen in ([0, 1, 2, 3, 4, 5, 6], [5, 2], [6]):
        batch = collate(examples, np.array(chosen), 256, torch.device("cpu"))
        assert batch.teacher is not None
        agree = (batch.teacher.ids_NK[:, 0] == batch.target_ids_N).float().mean()
        assert agree > 0.9
        assert batch.teacher.logprobs_NK.dtype == torch.float32
        width = max(len(rows[i].prompt_token_ids) + len(rows[i].completion_token_ids) for i in chosen) - 1
        assert batch.input_ids_BT.shape == (len(chosen), width)


def test_a_row_without_a_prompt_skips_the_token_that_nothing_predicts(rows: Any) -> None:
    row = rows[0]
    bare = Example(row.completion_token_ids, 0, row.signal)
    examples = ExampleSet([bare])
    batch = collate(examples, np.array([0]), 256, torch.device("cpu"))
    assert batch.target_ids_N.tolist() == row.completion_token_ids[1:].tolist()
    assert batch.teacher is not None
    assert batch.teacher.ids_NK.tolist() == row.signal.topk_ids_TK[1:].tolist()
    assert examples.num_loss_tokens.tolist() == [len(row.completion_token_ids) - 1]


def test_long_rows_are_left_out_or_cut_and_both_are_counted(empty_world: Any, rows: Any) -> None:
    row = rows[4]
    longest = len(row.prompt_token_ids) + 2
    drop = RowEncoder(settings(empty_world), empty_world.chat, SAME, 259, longest)
    assert drop.encode(row) is None and drop.counts["left_out_too_long"] == 1
    cutting = settings(empty_world, "sft", train={"sft": {"tokenizer": {"truncation": True}}})
    cut = RowEncoder(cutting, empty_world.chat, SAME, 259, longest)
    example = cut.encode(row)
    assert example is not None and len(example.token_ids) == longest and cut.counts["rows_truncated"] == 1
    no_room = RowEncoder(cutting, empty_world.chat, SAME, 259, len(row.prompt_token_ids))
    assert no_room.encode(row) is None and no_room.counts["left_out_too_long"] == 1


def test_unfinished_and_flagged_rows_train_and_are_counted(empty_world: Any, rows: Any) -> None:
    make = encoder(empty_world)
    assert make.encode(replace(rows[0], finish_reason="length", flags=("repetition",))) is not None
    assert make.encode(replace(rows[0], completion_token_ids=np.zeros(0, np.int32))) is None
    assert make.counts == {"rows_read": 2, "rows_finish_length": 1, "rows_flag_repetition": 1,
                           "left_out_empty": 1}  # fmt: skip


def test_what_an_endpoint_withheld_does_not_train(empty_world: Any, rows: Any) -> None:
    """F9: refusals have this finish reason, too."""
    make = encoder(empty_world)
    assert make.encode(replace(rows[0], finish_reason="content_filter")) is None
    assert make.counts == {"rows_read": 1, "left_out_content_filter": 1}


def test_a_token_outside_the_vocabulary_names_its_row(empty_world: Any, rows: Any) -> None:
    """F27."""
    make = RowEncoder(settings(empty_world), empty_world.chat, SAME, 100, 128)
    with pytest.raises(DataError, match=rows[0].key):
        make.encode(rows[0])


def test_rows_that_the_teacher_could_not_score_are_left_out_and_counted(
    empty_world: Any, rows: Any, store_writer: Any
) -> None:
    unscored = replace(rows[1], signal=None)
    store = store_writer(empty_world.root / "store", empty_world.chat, [rows[0], unscored, *rows[2:6]])
    with PartWriter(store) as writer:
        reject = Reject(unscored.key, unscored.prompt_id, "score", "context", "too long", 1)
        writer.commit_rejects(partition_of(unscored.key, 2), [reject])

    def counts(stage: str) -> dict[str, int]:
        wanted = TrainingRows(frozenset(row.key for row in rows[:6]))
        data = load_training_data(
            store, wanted, settings(empty_world, stage), empty_world.chat, SAME, vocab_size=259, context=128
        )
        return data.counts

    assert {"rows_read": 5, "left_out_unscored": 1}.items() <= counts("distill").items()
    assert {"rows_read": 6}.items() <= counts("sft").items()


def test_a_redacted_row_trains_on_its_new_text_and_has_no_signal(
    empty_world: Any, rows: Any, store_writer: Any
) -> None:
    store = store_writer(empty_world.root / "store", empty_world.chat, rows[:3])
    wanted = TrainingRows(frozenset(row.key for row in rows[:3]), {rows[1].key: "Ask [EMAIL]."})

    def load(stage: str) -> TrainingData:
        return load_training_data(
            store, wanted, settings(empty_world, stage), empty_world.chat, SAME, vocab_size=259, context=128
        )

    distilled = load("distill").counts
    assert distilled["left_out_redacted"] == 1 and distilled["rows_read"] == 2
    tuned = load("sft")
    assert tuned.counts["rows_redacted"] == 1 and tuned.counts["rows_read"] == 3
    sets = (tuned.train, tuned.held_out)
    texts = [empty_world.chat.decode(each.tokens(row).tolist()) for each in sets for row in range(len(each))]
    assert sum("Ask [EMAIL]." in text for text in texts) == 1


def test_stored_tokens_without_a_logit_move_into_the_tail(rows: Any) -> None:
    signal = rows[0].signal
    folded = fold_into_tail(signal, 120)
    mass = np.exp(folded.topk_logprobs_TK.astype(np.float64)).sum(1) + np.exp(folded.tail_logprob_T)
    np.testing.assert_allclose(mass, 1.0, atol=2e-3)
    assert (folded.topk_ids_TK < 120).all()
    assert np.isneginf(folded.topk_logprobs_TK[signal.topk_ids_TK >= 120]).all()
    assert fold_into_tail(signal, 259) is signal


def test_text_of_another_tokenizer_is_tokenised_again_for_sft(
    empty_world: Any, rows: Any, tokenizer_maker: Any, store_writer: Any
) -> None:
    """Same letters, other ids: SFT trains on the text, KD on the teacher's ids in the student's numbers."""
    directory = empty_world.root / "other"
    tokenizer_maker(extra=("ab", "cd")).save_pretrained(directory)
    other = load_chat_format(str(directory))
    store = store_writer(empty_world.root / "store", empty_world.chat, rows[:3])
    config = empty_world.config(student={"tokenizer": str(directory)})
    match = match_tokenizers(config, store, other, needs_signal=False)
    assert not match.same_ids
    make = RowEncoder(resolve_settings(config, "sft"), other, match, 261, 128)
    example = make.encode(rows[2])
    assert example is not None
    assert other.decode(example.token_ids[example.prompt_length :].tolist()) == rows[2].completion
    assert example.token_ids[-1] == other.tokenizer.eos_token_id
    cut_off = make.encode(replace(rows[2], finish_reason="length"))
    assert cut_off is not None and cut_off.token_ids[-1] != other.tokenizer.eos_token_id
    assert make.counts["rows_tokenised_again"] == 2
    assert match_tokenizers(config, store, other, needs_signal=True).translation is not None


def test_a_student_that_lacks_tokens_of_its_teacher_is_refused_with_examples(
    empty_world: Any, rows: Any, tokenizer_maker: Any, store_writer: Any
) -> None:
    """I26."""
    directory = empty_world.root / "other"
    tokenizer_maker(extra=("ab", "cd")).save_pretrained(directory)
    store = store_writer(empty_world.root / "store", load_chat_format(str(directory)), rows[:3])
    config = empty_world.config(teacher={"open": {"model": {"name": str(directory)}}})
    hashes = r"hashes: store (\w{12}), student \w{12}, teacher.open \1"
    missing = r"2 tokens have no counterpart, such as \d+: 'ab', \d+: 'cd'"
    with pytest.raises(DataError, match=rf"tokenizers differ .*{missing}.*{hashes}"):
        match_tokenizers(config, store, empty_world.chat, needs_signal=True)


def test_a_padded_vocabulary_is_the_same_tokenizer(world: Any) -> None:
    """I27."""
    config = world.config(student={"vocab_size": 512})
    match = match_tokenizers(config, load_store(world.root / "store"), world.chat, needs_signal=True)
    assert match == SAME
    assert world.train(config)["counts"]["steps"] == 6


def test_another_template_renders_the_prompt_again(world: Any, rows: Any) -> None:
    directory = world.root / "polite"
    world.chat.tokenizer.save_pretrained(directory)
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n", "helper\\n"))
    polite = load_chat_format(str(directory))
    match = match_tokenizers(world.config(), load_store(world.root / "store"), polite, needs_signal=True)
    assert match == TokenMatch(same_ids=True, same_template=False)
    example = RowEncoder(settings(world), polite, match, 259, 128).encode(rows[0])
    assert example is not None and example.signal is not None
    assert "helper" in polite.decode(example.token_ids.tolist())


def test_prompts_are_held_out_whole_and_by_seed(empty_world: Any) -> None:
    ids = [f"p{number % 50}" for number in range(200)]
    first = choose_held_out(ids, settings(empty_world))
    assert len(first) == 5 and first == choose_held_out(ids[::-1], settings(empty_world))
    other = settings(empty_world, train={"distillation": {"seed": 1}})
    assert choose_held_out(ids, other) != first
    off = settings(empty_world, train={"distillation": {"evaluation_strategy": "no"}})
    assert choose_held_out(ids, off) == frozenset()
    assert choose_held_out(["only"], settings(empty_world)) == frozenset()


def test_text_that_was_scored_trains_on_the_scorers_ids(
    empty_world: Any, rows: Any, store_writer: Any
) -> None:
    """A closed teacher answered in text, an open one scored: KD takes the scorer's tokens, SFT the text."""
    none = np.zeros(0, np.int32)
    store = store_writer(empty_world.root / "store", empty_world.chat, rows[:6])
    scored = {row.key: row for row in load_rows(store, with_signal=True)}
    text = [replace(row, prompt_token_ids=none, completion_token_ids=none, signal=None) for row in rows[:6]]
    identity = store.identity.model_copy(update={"tokenizer_sha256": "", "chat_template_sha256": ""})
    closed = open_store(empty_world.root / "closed", identity, 1)
    record_scorer(closed, store.identity)
    with PartWriter(closed) as writer:
        writer.commit_rows(0, text)
        ids = {key: ScoredIds(row.prompt_token_ids, row.completion_token_ids) for key, row in scored.items()}
        writer.commit_scores(0, [Score(key, row.signal, ids[key]) for key, row in scored.items()])
    assert match_tokenizers(empty_world.config(), closed, empty_world.chat, True) == SAME
    assert not match_tokenizers(empty_world.config(), closed, empty_world.chat, False).same_ids
    make = encoder(empty_world)
    for row in load_rows(closed, with_signal=True):
        example = make.encode(row)
        assert example is not None and example.signal is not None
        own = scored[row.key]
        assert example.token_ids.tolist() == [*own.prompt_token_ids, *own.completion_token_ids]


def test_loss_on_assistant_turns_reaches_into_the_prompt(empty_world: Any, rows: Any) -> None:
    """I23: the template needs no marks of what it generates."""
    chat: ChatFormat = empty_world.chat
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bcd"},
        {"role": "user", "content": "e"},
    ]
    ids = np.array(chat.render_prompt_ids(talk), dtype=np.int32)
    row = replace(rows[3], messages=json.dumps(talk), prompt_token_ids=ids)
    section = {"sft": {"loss_on": "assistant"}}
    example = encoder(empty_world, "sft", train=section).encode(row)
    assert example is not None
    batch = collate(ExampleSet([example]), np.array([0]), 0, torch.device("cpu"))
    end = chat.decode([chat.turn_end_id], skip_special_tokens=False)
    assert (
        chat.decode(batch.target_ids_N.tolist(), skip_special_tokens=False)
        == f"bcd{end}{row.completion}{end}"
    )


def test_text_is_tokenised_in_batches_as_one_by_one(world: Any, rows: Any) -> None:
    foreign = TokenMatch(same_ids=False, same_template=False)
    own = encoder(world, "sft", foreign)
    together = own.encode_all(rows, {rows[2].key: "redacted <s> text"})
    alone = [own.encode(row, "redacted <s> text" if row is rows[2] else None) for row in rows]
    for (prompt_id, one), row, other in zip(together, rows, alone, strict=True):
        assert prompt_id == row.prompt_id and other is not None
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.token_ids.tolist() == [*row.prompt_token_ids, *row.completion_token_ids] or row is rows[2]


def test_what_does_not_fit_is_told_with_a_length_that_would(empty_world: Any, rows: Any) -> None:
    """I22: with the length that would do."""
    own = RowEncoder(settings(empty_world, "sft"), empty_world.chat, SAME, 259, 30)
    kept = own.encode_all(rows, {})
    (note,) = own.lengths.describe_loss()
    lengths = sorted(len(row.prompt_token_ids) + len(row.completion_token_ids) for row in rows)
    assert len(kept) == sum(length <= 30 for length in lengths)
    assert f"the longest {lengths[-1]}" in note and "training.max_seq_len" in note
    assert f"rows by length: 1-64: {len(lengths)};" in note
    roomy = RowEncoder(settings(empty_world, "sft"), empty_world.chat, SAME, 259, 128)
    roomy.encode_all(rows, {})
    assert roomy.lengths.describe_loss() == ()


def test_where_every_answer_was_cut_off_the_error_says_what_would_help(world: Any) -> None:
    """F9."""
    store = load_store(world.root / "store")
    wanted = TrainingRows(frozenset(), num_cut_off=60)
    with pytest.raises(DataError, match="left_out_cut_off 60") as caught:
        load_training_data(store, wanted, settings(world), world.chat, SAME, vocab_size=259, context=128)
    assert "teacher.base.cut_off: train" in caught.value.problems[0].fix


def test_answers_that_were_cut_off_are_counted_and_told(world: Any, rows: Any) -> None:
    """F9."""
    store = load_store(world.root / "store")
    wanted = TrainingRows(frozenset(row.key for row in rows[:40]), num_cut_off=20)
    data = load_training_data(store, wanted, settings(world), world.chat, SAME, vocab_size=259, context=128)
    assert data.counts["left_out_cut_off"] == 20
    assert data.notes[0].startswith("20 of 60 completions ran into max_new_tokens")
