"""How long rows are, and what a limit on their length costs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystill.config.schema import Config
from raystill.config.student_init import resolve_max_positions
from raystill.run.paths import RunPaths
from raystill.store.pending import iter_requested
from raystill.store.store import load_store
from raystill.train.selection import load_training_rows
from raystill.train.settings import TrainSettings, trained_model

# Share of the completion tokens from which on their loss is worth a word.
_NOTICEABLE_LOSS = 0.005
_SMALLEST_BUCKET = 64


class RowLengths:
    """Collects rows' lengths in tokens, and the completion tokens that don't fit."""

    def __init__(self, max_tokens: int, *, truncate: bool) -> None:
        """Rows above `max_tokens` are cut there, or left out."""
        self._max_tokens = max_tokens
        self._truncate = truncate
        self._lengths: list[int] = []
        self._completion_tokens = self._lost_tokens = 0

    def add(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Take in a row; returns how many tokens of its completion are trained on."""
        length, kept = prompt_tokens + completion_tokens, completion_tokens
        if length > self._max_tokens:
            kept = max(self._max_tokens - prompt_tokens, 0) if self._truncate else 0
        self._lengths.append(length)
        self._completion_tokens += completion_tokens
        self._lost_tokens += completion_tokens - kept
        return kept

    def describe_loss(self) -> tuple[str, ...]:
        """A histogram and a limit that would do, where more than 0.5 % of the answers' tokens is lost."""
        share = self._lost_tokens / max(self._completion_tokens, 1)
        if share <= _NOTICEABLE_LOSS:
            return ()
        lengths = np.array(self._lengths)
        nearly_all = int(np.percentile(lengths, 99, method="higher"))
        return (
            f"{share:.1%} of the completion tokens don't fit into rows of {self._max_tokens} tokens; rows by "
            f"length: {_histogram(lengths)}; the longest {int(lengths.max())}; training.max_seq_len: "
            f"{nearly_all} would keep 99 % of the rows whole",
        )


def measure_stored(config: Config, paths: RunPaths, settings: TrainSettings) -> RowLengths:
    """Lengths of the rows that a stage is going to train on, in the teacher's tokens, as the store has them.

    Rows that are known as text alone are not counted: only the student's tokenizer says how long they are.
    Memory: two numbers per row, and one part. Raises DataError for a broken table or store.
    """
    longest = settings.max_seq_len
    if trained_model(config, settings.stage) == "student":
        longest = min(longest, resolve_max_positions(config.student) or longest)
    lengths = RowLengths(longest, truncate=settings.truncate)
    store = load_store(paths.store)
    wanted = pa.array(sorted(load_training_rows(config, paths).keys), pa.string())
    columns = ("key", "num_prompt_tokens", "num_completion_tokens")
    for table in iter_requested(store, paths.requests, columns):
        own = table.filter(pc.is_in(table.column("key"), wanted))
        for prompt, completion in zip(*(own.column(name).to_pylist() for name in columns[1:]), strict=True):
            if completion:
                lengths.add(prompt, completion)
    return lengths


def _histogram(lengths: npt.NDArray[np.int64]) -> str:
    """How many rows lie in each doubling of the length."""
    parts, low, high = [], 0, _SMALLEST_BUCKET
    while low < lengths.max():
        count = int(((lengths > low) & (lengths <= high)).sum())
        if count:
            parts.append(f"{low + 1}-{high}: {count}")
        low, high = high, 2 * high
    return ", ".join(parts)
