"""Refusals at the beginning, and what only looks like one."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.curate.refusal import check_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist with this request.",
        "I cannot provide medical advice.",
        "Sorry, I am unable to write that.",
        "As an AI language model, I don't have feelings.",
        "  I must respectfully decline.",
        "Unfortunately, I'm not able to share this.",
        "I apologize, but I won't answer.",
    ],
)
def test_refusals(candidate: Any, text: str) -> None:
    drop = check_refusal(candidate(text))
    assert drop is not None and drop.code == "refusal" and drop.detail


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Here is what you can do.",
        'The clerk said: "I can\'t help with that."',
        "I cannot recommend this book enough!",
        "As an AI researcher, you can apply.",
        "Sorry for the delay, here are the numbers.",
        "Sure. " * 80 + "I cannot help with that.",
    ],
)
def test_answers(candidate: Any, text: str) -> None:
    assert check_refusal(candidate(text)) is None
