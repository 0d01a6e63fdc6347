"""Thoughts are split off by ids or by text, at the same place in ids, signal and text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystill.store.records import TopKSignal
from raystill.teacher.engine import Generation, GenerationRequest, Sampling
from raystill.teacher.errors import EngineRowError
from raystill.teacher.reasoning import ReasoningMode, find_markers, split_text, split_thoughts
from raystill.teacher.row_work import Answer, GenerateWork
from raystill.text.chat import ChatFormat

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
NO_PROMPT = np.array([5, 6], np.int32)


@pytest.fixture(params=["ids", "text"])
def chat(request: pytest.FixtureRequest, build_tokenizer: Callable[..., Any]) -> ChatFormat:
    if request.param == "ids":
        return ChatFormat(build_tokenizer(special_tokens=SPECIAL))
    template = build_tokenizer().chat_template + "{# <think></think> #}"
    return ChatFormat(build_tokenizer(chat_template=template))


def ids_of(chat: ChatFormat, text: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(chat.encode(text), np.int32)


def decode(chat: ChatFormat) -> Callable[..., str]:
    return lambda ids: chat.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("completion", "thoughts", "answer"),
    [
        ("<think>two and two</think>\n\nIt is four.", "two and two", "It is four."),
        ("two and two</think> It is four.", "two and two", "It is four."),
        ("<think>\n\n</think>\n\nIt is four.", "", "It is four."),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_the_answer_begins_after_the_marker_and_its_blanks(
    chat: ChatFormat, completion: str, thoughts: str, answer: str
) -> None:
    markers = find_markers(chat)
    assert markers is not None
    ids = ids_of(chat, completion)
    found = split_thoughts(markers, NO_PROMPT, ids, decode(chat))
    assert found is not None
    assert found.finished
    assert found.text == thoughts
    assert decode(chat)(ids[found.num_tokens :].tolist()).lstrip() == answer


def test_without_markers_nothing_is_split(chat: ChatFormat) -> None:
    markers = find_markers(chat)
    assert markers is not None
    assert split_thoughts(markers, NO_PROMPT, ids_of(chat, "It is four."), decode(chat)) is None


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("assistant\n", "<think>two and"), ("assistant\n<think>\n", "two and")],
)
def test_thoughts_without_an_end_are_no_answer(chat: ChatFormat, prompt: str, completion: str) -> None:
    markers = find_markers(chat)
    assert markers is not None
    found = split_thoughts(markers, ids_of(chat, prompt), ids_of(chat, completion), decode(chat))
    assert found is not None
    assert not found.finished


def test_a_prompt_that_closed_the_thoughts_opens_none(chat: ChatFormat) -> None:
    markers = find_markers(chat)
    assert markers is not None
    prompt = ids_of(chat, "assistant\n<think></think>\n")
    assert split_thoughts(markers, prompt, ids_of(chat, "It is four."), decode(chat)) is None


def test_a_teacher_without_markers(build_tokenizer: Callable[..., Any]) -> None:
    assert find_markers(ChatFormat(build_tokenizer())) is None


def test_texts() -> None:
    assert split_text("<think>a</think>\nb") == ("a", "b")
    assert split_text("b") is None
    assert split_text("b <think>a</think>") is None


class OneAnswer:
    """An engine with one answer."""

    rows_in_flight = 1

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def generate(self, request: GenerationRequest) -> Generation:
        return self._generation

    async def score(self, request: Any) -> TopKSignal:
        raise NotImplementedError

    def shutdown(self) -> None:
        """Nothing."""


def work_on(chat: ChatFormat, directory: Path, mode: ReasoningMode, completion: str) -> tuple[Answer, Any]:
    chat.tokenizer.save_pretrained(str(directory))
    ids = np.asarray([*ids_of(chat, completion), chat.tokenizer.eos_token_id], np.int32)
    T = len(ids)
    signal = TopKSignal(
        topk_ids_TK=ids[:, None],
        topk_logprobs_TK=np.zeros((T, 1), np.float16),
        sampled_logprob_T=np.arange(T, dtype=np.float32),
        tail_logprob_T=np.zeros(T, np.float32),
    )
    work = GenerateWork(
        tokenizer_directory=str(directory),
        teacher_id="t",
        sampling_by_split={"train": Sampling(0.7, 1.0, 0, 64)},
        num_logprobs=1,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
        trust_remote_code=False,
        reasoning=mode,
        markers=find_markers(chat),
    )
    row = {
        "key": "0" * 32, "prompt_id": "p", "split": "train", "sample_index": 0, "source": "s",
        "messages": "[]", "prompt_token_ids": [5, 6], "sampling": None, "flags": [],
    }  # fmt: skip
    answer = asyncio.run(work.run(OneAnswer(Generation("k", ids, "stop", signal, 0.1)), row))
    return answer, work.teacher_row(answer)


@pytest.mark.parametrize("mode", ["keep", "drop", "train"])
def test_ids_and_signal_stay_together(chat: ChatFormat, tmp_path: Path, mode: ReasoningMode) -> None:
    answer, row = work_on(chat, tmp_path, mode, "<think>two and two</think>\n\nIt is four.")
    assert row.signal is not None
    assert row.signal.topk_ids_TK[:, 0].tolist() == row.completion_token_ids.tolist()
    assert np.all(np.diff(row.signal.sampled_logprob_T) == 1)
    if mode == "train":
        assert "two and two" in row.completion
        assert row.reasoning is None
        assert row.usage is None
        return
    assert row.completion.strip() == "It is four."
    assert row.reasoning == ("two and two" if mode == "keep" else None)
    assert row.completion_token_ids[-1] == chat.tokenizer.eos_token_id
    assert f'"reasoning_tokens": {answer.num_tokens - len(row.completion_token_ids)}' in row.usage


def test_no_answer_is_a_reject(chat: ChatFormat, tmp_path: Path) -> None:
    with pytest.raises(EngineRowError) as caught:
        work_on(chat, tmp_path, "keep", "<think>two and")
    assert caught.value.code == "reasoning_unfinished"
    work_on(chat, tmp_path, "train", "<think>two and")
