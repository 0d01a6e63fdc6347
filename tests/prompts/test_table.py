"""The table: every row is accounted for, and the order of rows decides nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raystill.errors import ConfigError, DataError
from raystill.prompts.rows import BadRow, RawRow
from raystill.prompts.shapes import RawPrompt, iter_prompts
from raystill.prompts.sources import Source
from raystill.prompts.table import PromptTable, TableRules, build_table
from raystill.text.chat import ChatFormat, load_chat_format

SOURCE = Source(
    config_key="prompts.sources[0]", label="data", path="data.jsonl", format="jsonl", shape="auto"
)

TEXTS = st.sampled_from([f"ask {'word ' * (index % 7)}{index}" for index in range(25)])
GOOD = st.fixed_dictionaries(
    {"prompt": TEXTS},
    optional={
        "system": st.sampled_from(["Be brief.", "Be kind."]),
        "reference": st.sampled_from(["yes", "no"]),
        "id": st.integers(0, 40),
    },
)
BAD = st.sampled_from([{"prompt": ""}, {"prompt": 3}, {"prompt": "a\0"}, {"prompt": "\ud800"}, {"x": 1}])
ROWS = st.lists(st.one_of(GOOD, GOOD, GOOD, BAD), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def chat(tokenizer_dir: Path) -> ChatFormat:
    return load_chat_format(str(tokenizer_dir))


def rules(**changes: Any) -> TableRules:
    defaults: dict[str, Any] = {
        "system": None,
        "max_bad_rows": 1000,
        "prompt_length": None,
        "over_length": "keep",
        "split_seed": 0,
        "eval_size": None,
        "eval_fraction": 0.2,
    }
    return TableRules(**{**defaults, **changes})


def build(rows: list[dict[str, Any]], chat: ChatFormat, **changes: Any) -> PromptTable | None:
    raw: list[RawRow | BadRow] = [RawRow(f"data.jsonl:{n}", dict(value)) for n, value in enumerate(rows, 1)]
    try:
        return build_table(iter_prompts(SOURCE, 0, raw), ["data"], rules(**changes), chat)
    except (ConfigError, DataError) as error:
        assert any(words in str(error) for words in ("no prompt is left", "held out", "no column")), error
        return None


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, limit=st.none() | st.integers(10, 60), system=st.none() | st.just("Be brief."))
def test_counts_add_up_and_sides_are_disjoint(
    chat: ChatFormat, rows: list[dict[str, Any]], limit: int | None, system: str | None
) -> None:
    over_length = "drop" if limit else "keep"
    table = build(rows, chat, prompt_length=limit, over_length=over_length, system=system)
    if table is None:
        return
    counts = table.counts
    assert counts["rows_in"] == len(rows)
    assert counts["rows_in"] == counts["kept"] + counts["duplicates"] + counts["dropped"] + counts["rejected"]
    assert counts["kept"] == len(table.prompts) == counts["train"] + counts["eval"]
    assert counts["dropped"] + counts["rejected"] == len(table.rejects)
    assert len({prompt.id for prompt in table.prompts}) == len(table.prompts)
    assert len({json.dumps(prompt.messages) for prompt in table.prompts}) == len(table.prompts)
    sides: dict[str, set[str]] = {"train": set(), "eval": set()}
    for prompt in table.prompts:
        sides[prompt.split].add(prompt.messages[-1]["content"])
        own = "\n".join(m["content"] for m in prompt.messages if m["content"] != system)
        assert limit is None or len(chat.encode(own)) <= limit
    assert not sides["train"] & sides["eval"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, seed=st.integers(0, 100))
def test_the_order_of_rows_decides_nothing(chat: ChatFormat, rows: list[dict[str, Any]], seed: int) -> None:
    table = build(rows, chat)
    shuffled = random.Random(seed).sample(rows, len(rows))
    again = build(shuffled, chat)
    if table is None or again is None:
        assert table is again
        return
    assert again.prompts == table.prompts
    assert again.content == table.content
    assert again.counts == table.counts


def test_the_first_source_wins_and_then_the_row_that_says_more(chat: ChatFormat) -> None:
    def prompt(source: int, reference: str | None, row_id: str | None = None) -> RawPrompt:
        return RawPrompt(
            where=f"s{source}",
            source_index=source,
            messages=[{"role": "user", "content": "same"}],
            task="text",
            reference=reference,
            id=row_id,
            id_is_required=False,
        )

    other = RawPrompt("x", 0, [{"role": "user", "content": "other"}], "text", None, "o", False)
    rows = [prompt(1, "late", "late"), prompt(0, None, "a"), prompt(0, "said", "b"), other]
    table = build_table(rows, ["first", "second"], rules(), chat)
    (same,) = [p for p in table.prompts if p.messages[0]["content"] == "same"]
    assert (same.source, same.reference, same.id) == ("first", "said", "b")
    assert table.counts["duplicates"] == 2


def test_content_ids_do_not_depend_on_reference_or_source(chat: ChatFormat) -> None:
    first = build([{"prompt": "x", "reference": "1"}, {"prompt": "y"}], chat)
    second = build([{"prompt": "y"}, {"prompt": "x", "reference": "2"}], chat)
    assert first is not None
    assert second is not None
    assert [p.id for p in first.prompts] == [p.id for p in second.prompts]
    assert first.content != second.content


def test_content_is_kept_as_it_is_but_for_line_endings(chat: ChatFormat) -> None:
    text = "  e\u0301 \u00e9 ﬁ \t tail \r\n\x0c next\r "
    table = build([{"prompt": text}, {"prompt": "other"}], chat)
    assert table is not None
    assert "  e\u0301 \u00e9 ﬁ \t tail \n\x0c next\n " in {p.messages[0]["content"] for p in table.prompts}
