"""One tokenizer's ids in another's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raystill.text.vocabulary import MISSING, map_vocabulary

Build = Callable[..., Any]


@pytest.fixture
def build() -> Build:
    def make(first: tuple[str, ...] = (), special: tuple[str, ...] = (), lacks: str = "") -> Any:
        """Every byte, after the tokens `first`, before the tokens `special`."""
        alphabet = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in lacks]
        vocabulary = {token: index for index, token in enumerate([*first, *alphabet])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        fast.add_tokens(list(special), special_tokens=True)
        return fast

    return make


def test_a_superset_under_other_numbers_says_the_same(build: Build) -> None:
    teacher, student = build(), build(first=("hello", "<|x|>"))
    translation = map_vocabulary(teacher, student)
    assert translation.is_complete and translation.num_missing == 0
    ids = np.array(teacher("Grüße, world!")["input_ids"])
    assert student.decode(translation.translate(ids)) == "Grüße, world!"
    assert translation.translate(ids.reshape(1, -1)).shape == (1, len(ids))
    assert "have a counterpart" in translation.describe()


def test_what_is_missing_is_named(build: Build) -> None:
    """I26."""
    translation = map_vocabulary(build(), build(lacks="abcdefg"))
    assert not translation.is_complete and translation.num_missing == 7
    assert [text for _, text in translation.examples] == ["'a'", "'b'", "'c'", "'d'", "'e'"]
    assert "7 tokens have no counterpart, such as" in translation.describe()


def test_the_teachers_own_control_tokens_may_be_missing(build: Build) -> None:
    teacher, student = build(special=("<|teacher|>",)), build(first=("hello",), special=("<|end|>",))
    translation = map_vocabulary(teacher, student)
    assert translation.is_complete and translation.num_missing_special == 1
    assert translation.translate(np.array([256])).tolist() == [MISSING]
    paired = translation.with_pair(256, 257)
    assert paired.translate(np.array([256, 300])).tolist() == [257, MISSING]
    assert paired.with_pair(256, 0).translate(np.array([256])).tolist() == [257]
    assert str(paired) != str(translation) == str(map_vocabulary(teacher, student))


def test_a_special_token_is_not_a_plain_one(build: Build) -> None:
    translation = map_vocabulary(build(first=("ab",)), build(special=("ab",)))
    assert translation.num_missing == 1 and translation.examples == ((0, "'ab'"),)


def test_equal_numbers_are_kept_and_doubles_stay_apart(build: Build) -> None:
    """A vocabulary may spell one byte twice: `<0x41>` and `A`."""
    teacher = build()
    same = map_vocabulary(teacher, build())
    assert np.array_equal(same.ids_V, np.arange(256))


def test_nothing_in_common_is_no_superset(build: Build) -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"word": 0}, unk_token="word"))
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    translation = map_vocabulary(build(), words)
    assert not translation.is_complete and len(translation.examples) == 5
