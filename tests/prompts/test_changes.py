"""A source that changed under a run: what is said, what is taken up, what stays (F33)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raystill.errors import ConfigError
from raystill.prompts.changes import describe_changes
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import load_prompts

LINES = [json.dumps({"id": f"q{number}", "prompt": f"What is {number}?"}) for number in range(20)]


def prompt(id_: str, text: str = "Hi", **changes: Any) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return replace(Prompt(id_, "s", "train", messages, "text", None, 3), **changes)


def test_every_kind_of_change_is_a_line_with_a_few_ids() -> None:
    before = [prompt(name) for name in "abcdefg"]
    after = [
        prompt("a"), prompt("b", "Ho"), prompt("c", split="eval"), prompt("d", task="exact", reference="4"),
        *(prompt(f"n{number}") for number in range(5)),
    ]  # fmt: skip
    assert describe_changes(before, after) == [
        "5 prompts new: n0, n1, n2, ...",
        "3 prompts gone: e, f, g",
        "1 prompts other words under the same id: b",
        "1 prompts another right answer: d",
        "1 prompts moved between train and eval: c",
    ]
    assert describe_changes(before, before[::-1]) == []


def test_a_changed_source_is_refused_with_the_difference_and_taken_up_on_request(
    prepared: Any, write_lines: Callable[..., Path]
) -> None:
    """F33."""
    path = write_lines(*LINES)
    source = {"path": str(path)}
    prepared.prepare(source)
    table = prepared.paths.prompt_table.read_bytes()
    changed = json.dumps({"id": "q3", "prompt": "What is three?"})
    write_lines(*LINES[1:3], changed, *LINES[4:], json.dumps({"id": "new", "prompt": "And this?"}))
    with pytest.raises(ConfigError) as caught:
        prepared.prepare(source)
    text = str(caught.value)
    assert "prepare was made from other data" in text and path.name in text
    for line in ("1 prompts new: new", "1 prompts gone: q0", "under the same id: q3"):
        assert line in text
    assert "--accept-new-data" in text
    assert prepared.paths.prompt_table.read_bytes() == table
    outcome = prepared.prepare(source, accept_new_data=True)
    assert outcome.manifest.counts["kept"] == 20
    found = {prompt.id: prompt for prompt in load_prompts(prepared.paths.prompt_table)}
    assert "q0" not in found and found["q3"].messages[0]["content"] == "What is three?"
    assert prepared.prepare(source).skipped


def test_a_source_that_changed_into_something_unreadable_says_both(
    prepared: Any, write_lines: Callable[..., Path]
) -> None:
    path = write_lines(*LINES)
    prepared.prepare({"path": str(path)})
    write_lines(LINES[0], "{broken")
    with pytest.raises(ConfigError, match="and the sources can't be read as they are"):
        prepared.prepare({"path": str(path)})


def test_another_tokenizer_is_no_new_data(
    prepared: Any, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    own = tmp_path / "tokenizer"
    shutil.copytree(prepared.tokenizer_dir, own)
    prepared.tokenizer_dir = own
    source = {"path": str(write_lines(*LINES))}
    prepared.prepare(source)
    settings = own / "tokenizer_config.json"
    settings.write_text(settings.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="teacher tokenizer: made from another version") as caught:
        prepared.prepare(source, accept_new_data=True)
    assert "--accept-new-data" not in str(caught.value)
