"""Prompts that the teacher's context can't hold are told before anything is asked (I21)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.teacher.identify import identify_teacher
from raystill.teacher.open_requests import describe_too_long
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

MakeConfig = Callable[..., Config]


def prompt(number: int, num_tokens: int) -> Prompt:
    messages = [{"role": "user", "content": "words"}]
    return Prompt(f"p{number}", "test", "train", messages, "text", None, num_tokens)


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ((20, 127), None),
        ((20, 128, 300), "2 of 3 prompts .* context of 128 tokens; the longest has 300"),
    ],
)
def test_prompts_that_leave_no_room_are_counted_before_anything_is_asked(
    make_config: MakeConfig, tmp_path: Path, lengths: tuple[int, ...], says: str | None
) -> None:
    """I21: their number, the longest, and the choices."""
    table = tmp_path / "prompts.parquet"
    save_prompts(table, [prompt(n, length) for n, length in enumerate(lengths)])
    teacher = identify_teacher(make_config())
    found = describe_too_long(teacher, table)
    if says is None:
        assert found is None
        return
    assert found is not None and re.search(says, found)
    for choice in ("truncation: true", "prompts.over_length: drop", "will be rejected"):
        assert choice in found
    assert describe_too_long(identify_teacher(make_config(tokenizer={"truncation": True})), table) is None
    save_prompts(table, [prompt(1, 400)])
    with pytest.raises(DataError, match="1 of 1 prompts") as caught:
        describe_too_long(teacher, table)
    assert "more context" in caught.value.problems[0].fix
