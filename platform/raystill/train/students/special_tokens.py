"""New tokens in a tokenizer, and rows for them in the model that was trained without them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from raystill.text.chat import ChatFormat


def add_special_tokens(chat: ChatFormat, tokens: Sequence[str]) -> ChatFormat:
    """`chat` with those of `tokens` that its tokenizer lacks, as special tokens at the end of its vocabulary.

    The given tokenizer is left as it is.
    """
    vocabulary = chat.tokenizer.get_vocab()
    if all(token in vocabulary for token in tokens):
        return chat
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.add_tokens([token for token in tokens if token not in vocabulary], special_tokens=True)
    return replace(chat, tokenizer=tokenizer)


def new_token_ids(before: ChatFormat, after: ChatFormat) -> list[int]:
    """Ids that `add_special_tokens` made of the tokens that `before` lacks."""
    known = before.tokenizer.get_vocab()
    return sorted(index for token, index in after.tokenizer.get_vocab().items() if token not in known)


def widen_embeddings(model: Any, new_ids: Sequence[int], known_tokens: int) -> None:
    """Give each of `new_ids` a row in both embeddings: the mean of the rows of the `known_tokens` first ids.

    With the mean a new token is as likely, before training, as tokens are on average, and the others lose
    least of their probability to it; a random row can be the likeliest of all. Rows that the vocabulary had
    as padding are used before new ones are made. Tied embeddings stay tied.
    """
    if not new_ids:
        return
    rows = int(model.get_input_embeddings().weight.shape[0])
    if max(new_ids) >= rows:
        model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    done: set[int] = set()
    index_N = torch.tensor(list(new_ids))
    with torch.no_grad():
        for layer in embeddings:
            for parameter in (layer.weight, getattr(layer, "bias", None)):
                if parameter is None or parameter.data_ptr() in done:
                    continue
                done.add(parameter.data_ptr())
                mean = parameter[:known_tokens].mean(dim=0)
                parameter[index_N.to(parameter.device)] = mean
