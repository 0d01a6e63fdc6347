"""Request keys: the same request, the same key; anything that decides the answer changes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from store_builder import IDENTITY

from raystill.store.identity import StoreIdentity, differing_fields, partition_of, request_key, row_seed

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_new_tokens": 64}


def key(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "identity": IDENTITY, "prompt": [1, 2, 3], "sampling": SAMPLING, "seed": 0, "sample_index": 0
    } | changes  # fmt: skip
    identity, prompt, sampling = (arguments.pop(name) for name in ("identity", "prompt", "sampling"))
    return request_key(identity, prompt, sampling, **arguments)


def test_a_key_is_stable_across_versions_of_this_program() -> None:
    assert IDENTITY.teacher_id == "99ed2d583b56"
    assert key() == "fa4053be78725c10669c6a4f1d2f6445"
    assert (row_seed(key()), partition_of(key(), 8)) == (489645125, 7)


def test_lists_and_arrays_of_ids_and_int_and_float_are_the_same_request() -> None:
    assert key(prompt=np.array([1, 2, 3], np.int32)) == key()
    assert key(prompt=np.array([1, 2, 3], np.int64)) == key()
    assert key(sampling=dict(reversed(SAMPLING.items()))) == key()
    assert key(sampling=SAMPLING | {"top_k": 50.0}) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": [1, 2]},
        {"prompt": [1, 2, 4]},
        {"prompt": "text"},
        {"sampling": SAMPLING | {"temperature": 0.8}},
        {"seed": 1},
        {"sample_index": 1},
        {"identity": IDENTITY.model_copy(update={"teacher": "other"})},
        {"identity": IDENTITY.model_copy(update={"revision": "abc"})},
        {"identity": IDENTITY.model_copy(update={"weights_sha256": "abc"})},
        {"identity": IDENTITY.model_copy(update={"tokenizer_sha256": "abc"})},
        {"identity": IDENTITY.model_copy(update={"chat_template_sha256": "abc"})},
    ],
)
def test_whatever_decides_the_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


def test_samples_of_one_request_share_a_partition_and_nothing_else() -> None:
    keys = [key(sample_index=index) for index in range(200)]
    assert len(set(keys)) == 200
    assert {partition_of(each, 4096) for each in keys} == {partition_of(key(), 4096)}
    assert len({row_seed(each) for each in keys}) == 200


def test_keeping_more_logprobs_or_rewording_the_licence_does_not_ask_again() -> None:
    other = IDENTITY.model_copy(update={"num_logprobs": 64, "licence_note": "x", "logprob_policy": "y"})
    assert key(identity=other) == key()
    assert differing_fields(IDENTITY, other) == [
        "num_logprobs: 4 -> 64",
        f"logprob_policy: {IDENTITY.logprob_policy!r} -> 'y'",
    ]


def test_ids_and_text_never_collide() -> None:
    assert key(prompt=[]) != key(prompt="")
    assert key(prompt=[0x61616161]) != key(prompt="aaaa")


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20), st.integers(1, 4096))
def test_partition_and_seed_follow_from_the_key(prompt: list[int], num_partitions: int) -> None:
    name = key(prompt=prompt)
    assert 0 <= partition_of(name, num_partitions) < num_partitions
    assert 0 <= row_seed(name) < 2**31


def test_partitions_and_seeds_spread_evenly_and_independently() -> None:
    names = [key(prompt=[i]) for i in range(4000)]
    counts = np.bincount([partition_of(name, 8) for name in names], minlength=8)
    assert counts.min() > 400
    first = [row_seed(name) % 8 for name in names if partition_of(name, 8) == 0]
    assert np.bincount(first, minlength=8).min() > 30
    assert len({row_seed(name) for name in names}) > 3990


def test_an_identity_needs_a_teacher_and_knows_its_fields() -> None:
    with pytest.raises(ValidationError):
        StoreIdentity.model_validate(IDENTITY.model_dump() | {"teacher": ""})
    with pytest.raises(ValidationError):
        StoreIdentity.model_validate(IDENTITY.model_dump() | {"surprise": 1})
