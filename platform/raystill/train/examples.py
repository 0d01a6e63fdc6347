"""Encoded training rows as flat arrays: what every batch is cut from.

Shape letters: T tokens of one row, S completion tokens of all rows, K stored logprobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raystill.store.records import Float16Array, Float32Array, Int32Array, TopKSignal

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One row: prompt and completion tokens; the tokens from `prompt_length` on carry loss.

    `signal`, where there is one, has an entry per completion token.
    """

    token_ids: Int32Array
    prompt_length: int
    signal: TopKSignal | None = None


@dataclass(frozen=True)
class SignalArrays:
    """The signals of all rows, one after the other."""

    ids_SK: Int32Array
    logprobs_SK: Float16Array
    tail_logprob_S: Float32Array


class ExampleSet:
    """Rows of one split. Indexing is by row number; arrays are shared, never copied per row."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Flatten `examples`: all of them have a signal of the same K, or none has."""
        self.lengths: Int64Array = np.array([len(example.token_ids) for example in examples], dtype=np.int64)
        self._prompt_lengths: Int64Array = np.array([e.prompt_length for e in examples], dtype=np.int64)
        self._offsets = _offsets(self.lengths)
        self._token_ids = _concatenate([example.token_ids for example in examples])
        self._signal_offsets = _offsets(self.lengths - self._prompt_lengths)
        self.signals = _flatten_signals([example.signal for example in examples])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_loss_tokens(self) -> Int64Array:
        """Tokens that carry loss, per row."""
        counts: Int64Array = np.maximum(self.lengths - np.maximum(self._prompt_lengths, 1), 0)
        return counts

    def arrays(self) -> list[npt.NDArray[np.generic]]:
        """Everything that training reads, for a fingerprint."""
        own: list[npt.NDArray[np.generic]] = [self.lengths, self._prompt_lengths, self._token_ids]
        signals = self.signals
        return own + (
            [] if signals is None else [signals.ids_SK, signals.logprobs_SK, signals.tail_logprob_S]
        )

    def tokens(self, row: int) -> Int32Array:
        """The tokens (T) of `row`."""
        return self._token_ids[self._offsets[row] : self._offsets[row + 1]]

    def first_target(self, row: int) -> int:
        """Position of the first token that carries loss: nothing predicts a row's very first token."""
        return max(int(self._prompt_lengths[row]), 1)

    def signal_places(self, row: int) -> Int64Array:
        """Where the signals of the row's targets stand in `signals`."""
        skipped = self.first_target(row) - int(self._prompt_lengths[row])
        return np.arange(self._signal_offsets[row] + skipped, self._signal_offsets[row + 1])


def _offsets(lengths: Int64Array) -> Int64Array:
    offsets: Int64Array = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return offsets


def _concatenate(arrays: Sequence[Int32Array]) -> Int32Array:
    flat: Int32Array = np.concatenate([np.zeros(0, dtype=np.int32), *arrays])
    return flat


def _flatten_signals(signals: Sequence[TopKSignal | None]) -> SignalArrays | None:
    present = [signal for signal in signals if signal is not None]
    if not present:
        return None
    assert len(present) == len(signals), "rows with and without signals are mixed"
    return SignalArrays(
        ids_SK=np.concatenate([signal.topk_ids_TK for signal in present]),
        logprobs_SK=np.concatenate([signal.topk_logprobs_TK for signal in present]),
        tail_logprob_S=np.concatenate([signal.tail_logprob_T for signal in present]),
    )
