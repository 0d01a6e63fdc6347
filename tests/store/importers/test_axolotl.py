"""Axolotl's logprob datasets: both spellings, alignment, and tokens by the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from foreign import DEMO_TEACHER, load, write_lines

from raystill.store.reader import load_rows
from raystill.text.chat import load_chat_format
from raystill.text.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "12 + 3 ="}, {"role": "assistant", "content": "15"}]


def record(tokens: list[int], name: str = "logprobs", **columns: Any) -> dict[str, Any]:
    logprobs = [
        [{"token": f"token_id:{token}", "logprob": -0.25}, {"token": "token_id:1", "logprob": -2.5}]
        for token in tokens
    ]
    return {"messages": MESSAGES, name: logprobs} | columns


def test_the_tokenizer_says_which_token_stands_where(tmp_path: Path) -> None:
    chat = load_chat_format(str(DEMO_TEACHER))
    tokens = [*chat.encode_completion("15"), chat.turn_end_id]
    path = write_lines(tmp_path / "rows.jsonl", record(tokens, "llm_text_generation_vllm_logprobs"))
    store, counts = load(tmp_path, "axolotl", path, tokenizer=str(DEMO_TEACHER))
    assert counts.num_signals == 1
    (row,) = load_rows(store, with_signal=True)
    assert row.completion_token_ids.tolist() == tokens
    assert row.prompt_token_ids.tolist() == chat.render_prompt_ids(MESSAGES[:1])
    assert row.signal is not None
    np.testing.assert_allclose(row.signal.sampled_logprob_T, -0.25)


def test_numbers_with_target_ids_are_the_same(tmp_path: Path) -> None:
    tokens = [5, 6, 7]
    plain = {
        "messages": MESSAGES, "logprobs": [[-0.25, -2.5]] * 3,
        "target_token_ids": [[token, 1] for token in tokens], "completion_token_ids": tokens,
    }  # fmt: skip
    path = write_lines(tmp_path / "rows.jsonl", record(tokens, completion_token_ids=tokens), plain)
    store, counts = load(tmp_path, "axolotl", path)
    assert (counts.num_added, counts.num_known) == (1, 1)
    assert load_rows(store, with_signal=True)[0].completion_token_ids.tolist() == tokens


def test_rows_that_cannot_be_aligned_are_rejected(tmp_path: Path) -> None:
    chat = load_chat_format(str(DEMO_TEACHER))
    tokens = [*chat.encode_completion("15"), chat.turn_end_id]
    path = write_lines(
        tmp_path / "rows.jsonl",
        record(tokens[:-2] or [1] * 9 if len(tokens) > 3 else []),
        record(tokens, logprobs=[[]] * len(tokens)),
        record(tokens, logprobs=[[{"token": "text", "logprob": -1.0}]] * len(tokens)),
        record(tokens, messages=MESSAGES[:1]),
        record(tokens, target_token_ids=[[1]]),
        record(tokens, completion_token_ids=["x"] * len(tokens)),
    )
    _, counts = load(tmp_path, "axolotl", path, tokenizer=str(DEMO_TEACHER))
    assert counts.num_added == 0
    assert set(counts.rejects_by_code) <= {
        "misaligned", "no_logprobs", "tokens_as_text", "no_answer", "bad_ids",
    }  # fmt: skip
    (tmp_path / "plain").mkdir()
    _, counts = load(tmp_path / "plain", "axolotl", write_lines(tmp_path / "one.jsonl", record(tokens)))
    assert counts.rejects_by_code == {"no_tokens": 1}


def test_calls_are_spelt_by_the_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(DEMO_TEACHER))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.a }}]{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    chat = load_chat_format(str(tmp_path / "chat"))
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    tokens = [*chat.encode("[add 2]"), chat.turn_end_id]
    row = record(tokens, messages=[MESSAGES[0], answer], finish_reason="tool_calls")
    short = record(tokens[:2], messages=[MESSAGES[0], answer], finish_reason="tool_calls")
    path = write_lines(tmp_path / "rows.jsonl", row, short)
    store, counts = load(tmp_path, "axolotl", path, tokenizer=str(tmp_path / "chat"))
    assert counts.rejects_by_code == {"misaligned": 1}
    (stored,) = load_rows(store, with_signal=True)
    assert stored.completion_token_ids.tolist() == tokens
    assert stored.tool_calls is not None

    (tmp_path / "plain").mkdir()
    _, counts = load(tmp_path / "plain", "axolotl", path, tokenizer=str(DEMO_TEACHER))
    assert counts.rejects_by_code == {"template": 2}
