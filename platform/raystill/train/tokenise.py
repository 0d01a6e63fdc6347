"""Tokenises the rows that are stored as text, a thousand at a time: the tokenizer then uses every core."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from raystill.store.records import Int32Array, TeacherRow
from raystill.text.chat import ChatFormat

BATCH_ROWS = 1000


@dataclass(frozen=True)
class TextRow:
    """A row whose completion is to be tokenised: `text` as it is, or as a redaction left it."""

    row: TeacherRow
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation before the completion."""
        messages: list[dict[str, str]] = json.loads(self.row.messages)
        return messages


def iter_tokenised(
    chat: ChatFormat, rows: Iterable[TextRow]
) -> Iterator[tuple[TextRow, Int32Array, Int32Array]]:
    """Prompt ids and completion ids (without the token that ends the turn) of every row, in order.

    While one batch is tokenised the next one is read and rendered.
    """
    source = iter(rows)
    # A copy of its own: tokenising completions switches a flag of the tokenizer.
    background = replace(chat, tokenizer=copy.deepcopy(chat.tokenizer))
    with ThreadPoolExecutor(1, "tokenise") as pool:
        waiting: tuple[list[TextRow], Future[tuple[list[Int32Array], list[Int32Array]]]] | None = None
        while batch := list(islice(source, BATCH_ROWS)):
            prompts = [chat.render_text(item.messages) for item in batch]
            future = pool.submit(_tokenise, background, prompts, [item.text for item in batch])
            if waiting is not None:
                yield from zip(waiting[0], *waiting[1].result(), strict=True)
            waiting = batch, future
        if waiting is not None:
            yield from zip(waiting[0], *waiting[1].result(), strict=True)


def _tokenise(
    chat: ChatFormat, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[list[Int32Array], list[Int32Array]]:
    return tokenise_texts(chat, prompts), tokenise_texts(chat, completions, split_special_tokens=True)


def tokenise_texts(
    chat: ChatFormat, texts: Sequence[str], *, split_special_tokens: bool = False
) -> list[Int32Array]:
    """Ids of every text, no special tokens added; a special token's spelling is just characters with
    `split_special_tokens`.

    Goes to the tokenizer's Rust half where there is one: the call that transformers offers builds offsets
    and masks that nobody reads.
    """
    tokenizer: Any = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        called: Any = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            verbose=False,
        )
        return [np.array(ids, dtype=np.int32) for ids in called["input_ids"]]
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]
