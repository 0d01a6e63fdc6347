"""The split: what is held out never appears in training, and stays held out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.errors import ConfigError
from raystill.prompts.split import compute_splits, user_text_key


def asking(text: str, system: str | None = None) -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


CONVERSATIONS = st.lists(
    st.builds(asking, st.sampled_from([f"q {i}" for i in range(30)]), st.sampled_from([None, "A", "B"])),
    min_size=2,
    max_size=40,
)


@settings(deadline=None)
@given(conversations=CONVERSATIONS, seed=st.integers(0, 5), size=st.none() | st.integers(0, 10))
def test_sides_share_no_user_text_and_do_not_depend_on_order(
    conversations: list[list[dict[str, str]]], seed: int, size: int | None
) -> None:
    try:
        splits = compute_splits(conversations, seed, size, 0.3)
    except ConfigError:
        assert size is not None
        assert size >= len(conversations)
        return
    held_out = {user_text_key(c) for c, split in zip(conversations, splits, strict=True) if split == "eval"}
    trained = {user_text_key(c) for c, split in zip(conversations, splits, strict=True) if split == "train"}
    assert trained
    assert not held_out & trained
    if size is not None:
        assert splits.count("eval") <= size
    assert compute_splits(conversations[::-1], seed, size, 0.3) == splits[::-1]


@settings(deadline=None)
@given(seed=st.integers(0, 1000), extra=st.integers(1, 200))
def test_with_a_fraction_nobody_changes_sides_when_prompts_are_added(seed: int, extra: int) -> None:
    few = [asking(f"q {index}") for index in range(100)]
    more = few + [asking(f"new {index}") for index in range(extra)]
    assert compute_splits(more, seed, None, 0.2)[:100] == compute_splits(few, seed, None, 0.2)


def test_exact_size_and_share() -> None:
    conversations = [asking(f"q {index}") for index in range(5_000)]
    assert compute_splits(conversations, 0, 123, 0.5).count("eval") == 123
    assert compute_splits(conversations, 0, 0, 0.5).count("eval") == 0
    assert 70 < compute_splits(conversations, 0, None, 0.02).count("eval") < 130


def test_seed_decides() -> None:
    conversations = [asking(f"q {index}") for index in range(200)]
    assert compute_splits(conversations, 1, 20, 0.5) != compute_splits(conversations, 2, 20, 0.5)


def test_spacing_case_and_system_do_not_separate_prompts() -> None:
    same = [asking("What is  RAY?\n"), asking("what is ray?", system="Be brief.")]
    assert user_text_key(same[0]) == user_text_key(same[1])
    for seed in range(20):
        splits = compute_splits([*same, asking("other")], seed, None, 0.5)
        assert splits[0] == splits[1] != splits[2]


def test_at_least_one_prompt_is_held_out_and_one_trained_on() -> None:
    for fraction in (0.001, 0.999):
        assert sorted(compute_splits([asking("a"), asking("b")], 0, None, fraction)) == ["eval", "train"]
    assert compute_splits([asking("a")], 0, None, 0.999) == ["train"]
    with pytest.raises(ConfigError, match=r"all 2 prompts"):
        compute_splits([asking("a"), asking("b")], 0, 2, 0.02)
