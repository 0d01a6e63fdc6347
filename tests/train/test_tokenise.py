from __future__ import annotations

import json
from typing import Any

import pytest

from raystill.train import tokenise
from raystill.train.tokenise import TextRow, iter_tokenised


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_batches_give_what_single_rows_give_in_order(
    empty_world: Any, rows: Any, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "BATCH_ROWS", batch_rows)
    chat = empty_world.chat
    items = [TextRow(row, f"{row.completion} <s></s>") for row in rows]
    found = list(iter_tokenised(chat, iter(items)))
    assert [item for item, _, _ in found] == items
    for item, prompt_ids, completion_ids in found:
        example = chat.training_example(json.loads(item.row.messages), item.text)
        assert [*prompt_ids, *completion_ids, chat.turn_end_id] == example.input_ids
        assert len(prompt_ids) == len(example.loss_mask) - sum(example.loss_mask)


def test_an_error_in_a_template_comes_through(empty_world: Any, rows: Any) -> None:
    from dataclasses import replace

    broken = replace(rows[0], messages=json.dumps([{"content": "no role"}]))
    with pytest.raises(KeyError):
        list(iter_tokenised(empty_world.chat, [TextRow(broken, "x")]))
