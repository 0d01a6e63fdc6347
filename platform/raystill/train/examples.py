"""Encoded training rows as flat arrays: what every batch is cut from.

Shape letters: T tokens of one row, S completion tokens of all rows, K stored logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.store.records import Int32Array
from raystill.train.signal_arrays import (
    SignalArrays,
    StoredSignal,
    flatten_signals,
    signals_from_arrays,
)
from raystill.train.teacher_head import TeacherHead

Int64Array = npt.NDArray[np.int64]

_SIGNAL = "signals."


@dataclass(frozen=True)
class Example:
    """One row: prompt and completion tokens; the tokens from `prompt_length` on carry loss.

    `signal`, where there is one, has an entry per completion token. `prompt_targets` are places in the prompt
    that carry loss too; `source` is where the prompt came from.
    """

    token_ids: Int32Array
    prompt_length: int
    signal: StoredSignal | None = None
    prompt_targets: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    source: str = ""


class ExampleSet:
    """Rows of one split. Indexing is by row number; arrays are shared, never copied per row."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Flatten `examples`: all of them have a signal of the same K, or none has."""
        names = tuple(sorted({example.source for example in examples}))
        number = {name: index for index, name in enumerate(names)}
        self._set(
            {
                "lengths": _int64([len(example.token_ids) for example in examples]),
                "prompt_lengths": _int64([example.prompt_length for example in examples]),
                "token_ids": _concatenate([example.token_ids for example in examples]),
                "prompt_targets": np.concatenate([_int64([]), *(e.prompt_targets for e in examples)]),
                "num_prompt_targets": _int64([len(example.prompt_targets) for example in examples]),
                "sources": _int64([number[example.source] for example in examples]),
            },
            names,
            flatten_signals([example.signal for example in examples]),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], source_names: Sequence[str]) -> ExampleSet:
        """The set that `to_arrays` and `source_names` describe; the arrays may be mapped from disk."""
        new = cls.__new__(cls)
        signals = {name.removeprefix(_SIGNAL): array for name, array in arrays.items() if _SIGNAL in name}
        new._set(arrays, tuple(source_names), signals_from_arrays(signals))
        return new

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the sources' names."""
        signals = {} if self.signals is None else vars(self.signals)
        return {**self._arrays, **{f"{_SIGNAL}{name}": array for name, array in signals.items()}}

    def _set(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        source_names: tuple[str, ...],
        signals: SignalArrays | None,
    ) -> None:
        self._arrays = {name: array for name, array in arrays.items() if _SIGNAL not in name}
        self.lengths: Int64Array = arrays["lengths"]
        self.sources: Int64Array = arrays["sources"]
        self.source_names = source_names
        self.signals = signals
        # Set after loading, where the signals are hidden states.
        self.teacher_head: TeacherHead | None = None
        self._prompt_lengths: Int64Array = arrays["prompt_lengths"]
        self._token_ids: Int32Array = arrays["token_ids"]
        self._prompt_targets: Int64Array = arrays["prompt_targets"]
        self._offsets = _offsets(self.lengths)
        self._signal_offsets = _offsets(self.lengths - self._prompt_lengths)
        self._target_offsets = _offsets(arrays["num_prompt_targets"])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_loss_tokens(self) -> Int64Array:
        """Tokens that carry loss, per row."""
        counts: Int64Array = np.maximum(self.lengths - np.maximum(self._prompt_lengths, 1), 0)
        return counts + np.diff(self._target_offsets)

    def arrays(self) -> list[npt.NDArray[np.generic]]:
        """Everything that training reads, for a fingerprint."""
        arrays = self.to_arrays()
        return [arrays[name] for name in sorted(arrays)]

    def tokens(self, row: int) -> Int32Array:
        """The tokens (T) of `row`."""
        return self._token_ids[self._offsets[row] : self._offsets[row + 1]]

    def first_target(self, row: int) -> int:
        """Position of the first token that carries loss: nothing predicts a row's very first token."""
        return max(int(self._prompt_lengths[row]), 1)

    def target_places(self, row: int) -> Int64Array:
        """Positions, in the row, of the tokens that carry loss; rising."""
        own = np.arange(self.first_target(row), self.lengths[row])
        first, last = self._target_offsets[row], self._target_offsets[row + 1]
        return own if first == last else np.concatenate([self._prompt_targets[first:last], own])

    def signal_places(self, row: int) -> Int64Array:
        """Where the signals of the row's targets stand in `signals`."""
        skipped = self.first_target(row) - int(self._prompt_lengths[row])
        return np.arange(self._signal_offsets[row] + skipped, self._signal_offsets[row + 1])


def _int64(values: Sequence[int]) -> Int64Array:
    return np.array(values, dtype=np.int64)


def _offsets(lengths: Int64Array) -> Int64Array:
    offsets: Int64Array = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return offsets


def _concatenate(arrays: Sequence[Int32Array]) -> Int32Array:
    flat: Int32Array = np.concatenate([np.zeros(0, dtype=np.int32), *arrays])
    return flat
