"""Foreign logprobs become a signal: sorted, normalised where they say so, with the tail they leave.

Shape letters: T completion tokens, K stored logprobs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.store.importers.answer import RowError
from raystill.store.records import Int32Array, TopKSignal

# More than this above 1 is no rounding: the numbers are no logprobs, or were decoded with wrong parameters.
MASS_TOLERANCE = 0.01
# Set on rows where a token outside the top k stands: only a bound of its logprob is known then.
BOUND_FLAG = "sampled_logprob_bound"
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")
Float64Array = npt.NDArray[np.float64]


def build_signal(
    ids_TK: Int32Array,
    logprobs_TK: npt.NDArray[Any],
    completion_token_ids: Int32Array,
    sampled_logprob_T: npt.NDArray[Any] | None = None,
    mass_tolerance: float = MASS_TOLERANCE,
) -> tuple[TopKSignal, bool]:
    """A signal of logprobs in any order, and whether some sampled token's logprob is only a bound.

    tail = log(1 - sum of exp(logprobs)), -inf where rounding leaves nothing; where the sum exceeds 1 by no
    more than `mass_tolerance` it is scaled to 1. A sampled token that is outside the K, and whose logprob
    isn't given, gets the largest value it can have: the smaller of the K-th and the tail. Raises RowError.
    """
    if ids_TK.shape != logprobs_TK.shape or len(ids_TK) != len(completion_token_ids):
        raise RowError(
            "misaligned", f"{len(logprobs_TK)} distributions for {len(completion_token_ids)} tokens"
        )
    if np.isnan(logprobs_TK).any() or (logprobs_TK > MASS_TOLERANCE).any():
        raise RowError("not_logprobs", "a logprob is NaN or above 0")
    exact_TK = np.maximum(logprobs_TK.astype(np.float64), float(np.finfo(np.float16).min))
    order_TK = np.argsort(-exact_TK, axis=1, kind="stable")
    exact_TK = np.take_along_axis(exact_TK, order_TK, 1)
    ids_TK = np.take_along_axis(ids_TK, order_TK, 1).astype(np.int32)
    mass_T = np.exp(exact_TK).sum(axis=1)
    if (mass_T > 1.0 + mass_tolerance).any():
        raise RowError("not_normalised", f"probabilities of one token sum to {float(mass_T.max()):.4f}")
    over_T = np.log(np.maximum(mass_T, 1.0))
    exact_TK = np.minimum(exact_TK - over_T[:, None], 0.0)
    with np.errstate(divide="ignore"):
        tail_T = np.log(np.maximum(1.0 - mass_T, 0.0))
    sampled_T, is_bound = _sampled(ids_TK, exact_TK, tail_T, completion_token_ids, sampled_logprob_T)
    signal = TopKSignal(
        topk_ids_TK=ids_TK,
        topk_logprobs_TK=exact_TK.astype(np.float16),
        sampled_logprob_T=sampled_T.astype(np.float32),
        tail_logprob_T=tail_T.astype(np.float32),
    )
    return signal, is_bound


def _sampled(
    ids_TK: Int32Array,
    logprobs_TK: Float64Array,
    tail_T: Float64Array,
    tokens_T: Int32Array,
    given_T: npt.NDArray[Any] | None,
) -> tuple[Float64Array, bool]:
    if given_T is not None:
        return np.maximum(given_T.astype(np.float64), float(np.finfo(np.float16).min)), False
    found_TK = ids_TK == tokens_T[:, None]
    inside_T = found_TK.any(axis=1)
    own_T = np.where(found_TK, logprobs_TK, 0.0).sum(axis=1)
    floor = float(np.finfo(np.float16).min)
    bound_T = np.maximum(np.minimum(logprobs_TK[:, -1], tail_T), floor) if ids_TK.shape[1] else tail_T
    return np.where(inside_T, own_T, bound_T), bool((~inside_T).any())


def read_token_id(token: Any) -> int | None:
    """N of "token_id:N", the spelling with which vLLM and Axolotl name tokens; None for anything else."""
    found = _TOKEN_ID.fullmatch(token) if isinstance(token, str) else None
    return int(found.group(1)) if found else None


def read_entries(
    positions: Sequence[Any], token_ids: dict[bytes, int] | None
) -> tuple[Int32Array, Float64Array]:
    """Ids and logprobs, T x K, of OpenAI-style lists of `{"token", "logprob", "bytes"}`.

    K is the shortest list's length; longer ones lose their worst entries, and an entry that stands twice
    counts once. Tokens are "token_id:N", or text that `token_ids` (bytes to id) knows. Raises RowError.
    """
    rows: list[list[tuple[int, float]]] = []
    for number, entries in enumerate(positions):
        if not isinstance(entries, list) or not entries:
            raise RowError("no_logprobs", f"token {number} has no logprobs")
        best: dict[int, float] = {}
        for entry in entries:
            token_id, logprob = _read_entry(entry, token_ids, number)
            best.setdefault(token_id, logprob)
        rows.append(sorted(best.items(), key=lambda item: -item[1]))
    K = min(map(len, rows), default=0)
    ids = np.array([[token for token, _ in row[:K]] for row in rows], np.int32).reshape(len(rows), K)
    values = np.array([[value for _, value in row[:K]] for row in rows], np.float64).reshape(len(rows), K)
    return ids, values


def entry_token_id(entry: Any, token_ids: dict[bytes, int] | None, number: int) -> int:
    """The id that one entry names. Raises RowError where it can't be told."""
    token = entry.get("token") if isinstance(entry, dict) else None
    found = read_token_id(token)
    if found is not None:
        return found
    if token_ids is None:
        raise RowError("tokens_as_text", f"token {number} is text, and no tokenizer is given: {token!r}")
    raw = entry.get("bytes")
    content = bytes(raw) if isinstance(raw, list) and raw else str(token).encode("utf-8", "surrogatepass")
    if content not in token_ids:
        raise RowError("unknown_token", f"the tokenizer has no (single) token {content!r}")
    return token_ids[content]


def _read_entry(entry: Any, token_ids: dict[bytes, int] | None, number: int) -> tuple[int, float]:
    logprob = entry.get("logprob") if isinstance(entry, dict) else None
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise RowError("no_logprobs", f"an entry of token {number} has no logprob")
    return entry_token_id(entry, token_ids, number), float(logprob)
