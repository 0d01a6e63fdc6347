from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystill.errors import DataError
from raystill.train.render_check import check_rendering, first_difference


def test_rows_as_served_pass(empty_world: Any, rows: Any) -> None:
    check_rendering(empty_world.chat, rows)


def test_a_prompt_that_was_rendered_otherwise_is_shown_with_its_first_differing_token(
    empty_world: Any, rows: Any
) -> None:
    ids = rows[0].prompt_token_ids.copy()
    ids[5] += 1
    with pytest.raises(DataError, match="differ from token 5 on") as caught:
        check_rendering(empty_world.chat, [replace(rows[0], prompt_token_ids=ids)])
    assert rows[0].key in str(caught.value)


def test_a_prompt_without_the_assistants_header_is_one_that_was_asked_for(
    empty_world: Any, rows: Any
) -> None:
    chat = empty_world.chat
    import json

    ids = chat.render_prompt_ids(json.loads(rows[0].messages), add_generation_prompt=False)
    check_rendering(chat, [replace(rows[0], prompt_token_ids=np.array(ids, dtype=np.int32))])


def test_the_first_difference_of_a_prefix_is_its_end() -> None:
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([1, 2], [2, 2]) == 0
