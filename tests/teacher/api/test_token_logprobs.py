"""Logprobs of an endpoint as token ids and signals that pass the store's own check."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raystill.store.selfcheck import check_signals
from raystill.teacher.api.token_logprobs import TokenMap, map_logprobs
from raystill.teacher.api.wire import Choice, ChoiceLogprobs, Message, TokenLogprob, TopLogprob


@pytest.fixture(scope="module")
def tokenizer(teacher_dir: Any) -> Any:
    from raystill.text.tokenizer import load_tokenizer

    return load_tokenizer(str(teacher_dir))


def entry(tokenizer: Any, index: int, logprob: float, others: list[tuple[int, float]]) -> TokenLogprob:
    def named(token_id: int) -> tuple[str, list[int]]:
        text = tokenizer.decode([token_id])
        return text, list(text.encode())

    token, content = named(index)
    top = [TopLogprob(*(lambda pair: (pair[0], value, pair[1]))(named(other))) for other, value in others]
    return TokenLogprob(token, logprob, content, top)


def choice(entries: list[TokenLogprob], token_ids: list[int] | None = None) -> Choice:
    return Choice(Message(content="x"), "stop", ChoiceLogprobs(entries), token_ids)


def test_bytes_become_ids_and_the_rest_of_the_mass_the_tail(tokenizer: Any) -> None:
    a, b, c = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("a", "b", "c"))
    half, quarter = math.log(0.5), math.log(0.25)
    entries = [
        entry(tokenizer, a, half, [(a, half), (b, quarter)]),
        entry(tokenizer, c, math.log(0.05), [(a, half), (b, quarter)]),
    ]
    mapped = map_logprobs(choice(entries), TokenMap(tokenizer), num_logprobs=2)
    assert mapped.token_ids is not None and mapped.token_ids.tolist() == [a, c]
    assert mapped.signal is not None
    assert mapped.signal.topk_ids_TK.tolist() == [[a, b], [a, b]]
    np.testing.assert_allclose(np.exp(mapped.signal.tail_logprob_T), [0.25, 0.25], atol=1e-3)
    check_signals([("k", mapped.signal, mapped.token_ids)])


def test_ids_of_vllm_are_taken_as_they_are_and_sorted(tokenizer: Any) -> None:
    # The server lists the sampled token first, wherever it ranks.
    top = [TopLogprob("token_id:7", -3.0), TopLogprob("token_id:5", -0.2), TopLogprob("token_id:6", -2.5)]
    mapped = map_logprobs(
        choice([TokenLogprob("token_id:7", -3.0, None, top)], [7]), TokenMap(tokenizer), num_logprobs=3
    )
    assert mapped.signal is not None and mapped.token_ids is not None
    assert mapped.signal.topk_ids_TK.tolist() == [[5, 6, 7]]
    check_signals([("k", mapped.signal, mapped.token_ids)])


def test_an_unknown_token_leaves_the_row_without_signal_rather_than_with_a_wrong_one(tokenizer: Any) -> None:
    strange = TokenLogprob("\u2603\u2603", -0.1, list("\u2603\u2603".encode()), [])
    mapped = map_logprobs(choice([strange]), TokenMap(tokenizer), num_logprobs=2)
    assert mapped.token_ids is None and mapped.signal is None
