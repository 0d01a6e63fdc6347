"""A student that has its teacher's tokens under other numbers learns from the stored distributions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystill.errors import DataError
from raystill.text.chat import load_chat_format
from raystill.train.token_match import match_tokenizers


def student_config(world: Any, tokenizer: Any) -> Any:
    directory = world.root / "student_tokenizer"
    tokenizer.save_pretrained(directory)
    return world.config("student", student={"tokenizer": str(directory)})


def test_ids_and_alternatives_are_renamed(world: Any, tokenizer_maker: Any, rows: Any) -> None:
    from raystill.train.assembly import assemble
    from raystill.train.group import WorkerGroup

    config = student_config(world, tokenizer_maker(extra=("ab", "cd", "<|x|>")))
    run = assemble(world.job(config), WorkerGroup())
    theirs, ours = world.chat.tokenizer, run.chat.tokenizer
    assert len(ours) == len(theirs) + 3
    by_text = {theirs.decode(row.completion_token_ids): row for row in rows}
    data = run.data.train
    assert len(data) > 30 and data.signals is not None
    for number in range(len(data)):
        tokens, places = data.tokens(number), data.target_places(number)
        row = by_text[ours.decode(tokens[places])]
        assert ours.decode(tokens[: places[0]]) == theirs.decode(row.prompt_token_ids)
        assert len(places) == len(row.completion_token_ids)
    for place in (0, 5, 11):
        names = ours.convert_ids_to_tokens(data.signals.ids_SK[place].tolist())
        signal_of = [
            theirs.convert_ids_to_tokens(ids.tolist()) for row in rows for ids in row.signal.topk_ids_TK
        ]
        assert names in signal_of
    assert world.train(config)["metrics"]["final_train_kd_kl"] > 0


def test_a_token_that_is_missing_is_shown(world: Any, tokenizer_maker: Any) -> None:
    from raystill.store.store import load_store

    config = student_config(world, tokenizer_maker(extra=("ab",)))
    chat = load_chat_format(str(config.student.tokenizer))
    store = load_store(world.root / "store")
    wider = tokenizer_maker(extra=("unknown token", "another"))
    wider.save_pretrained(world.root / "teacher")
    from raystill.text.tokenizer import tokenizer_sha256

    identity = store.identity.model_copy(update={"tokenizer_sha256": tokenizer_sha256(wider)})
    teacher = world.config("t", teacher={"open": {"model": {"name": str(world.root / "teacher")}}})
    with pytest.raises(DataError, match=r"2 tokens have no counterpart, such as 0: 'unknown"):
        match_tokenizers(teacher, replace(store, identity=identity), chat, needs_signal=True)


def test_a_completion_that_cannot_be_said_is_left_out(world: Any, tokenizer_maker: Any, rows: Any) -> None:
    from raystill.text.token_match import TokenMatch
    from raystill.text.vocabulary import MISSING, map_vocabulary
    from raystill.train.encode import RowEncoder
    from raystill.train.settings import resolve_settings

    config = student_config(world, tokenizer_maker(extra=("ab",)))
    chat = load_chat_format(str(config.student.tokenizer))
    translation = map_vocabulary(world.chat.tokenizer, chat.tokenizer)
    ids = translation.ids_V.copy()
    missing = int(rows[0].completion_token_ids[0])
    ids[missing] = MISSING
    match = TokenMatch(same_ids=True, same_template=False, translation=replace(translation, ids_V=ids))
    encoder = RowEncoder(resolve_settings(config, "distill"), chat, match, len(chat.tokenizer), 128)
    assert encoder.encode(rows[0]) is None and encoder.counts["left_out_foreign_token"] == 1
    other = next(row for row in rows if missing not in row.completion_token_ids)
    example = encoder.encode(other)
    assert example is not None and example.signal is not None
    mass = np.exp(example.signal.topk_logprobs_TK.astype(np.float64)).sum(1)
    assert np.all(mass + np.exp(example.signal.tail_logprob_T) > 0.99)
