"""Signals beside the top k: sampled distributions and hidden states. Position convention as in `records`.

Shape letters: T completion tokens, D hidden size, E drawn ids of all positions, end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystill.errors import DataError
from raystill.store.records import Float16Array, Float32Array, Int32Array

TierKind = Literal["sampled", "hidden"]
MAX_DRAWS = 65_535
UInt16Array = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class SampledSignal:
    """Draws from a teacher's whole distribution at every completion token: which ids, how often.

    Random-sampling knowledge distillation (arXiv 2503.16870): counts / num_draws is an unbiased estimate of
    every probability, the tail's too, where a top k is biased. `num_unique_T` distinct ids per position;
    their `draw_ids_E`, ascending within a position, and `draw_counts_E`, which sum to `num_draws` there.
    `sampled_logprob_T`: the logprob of the token that stands there, exact.
    """

    num_draws: int
    num_unique_T: Int32Array
    draw_ids_E: Int32Array
    draw_counts_E: UInt16Array
    sampled_logprob_T: Float32Array

    def __post_init__(self) -> None:
        num_entries = int(self.num_unique_T.sum())
        if len(self.draw_ids_E) != num_entries or len(self.draw_counts_E) != num_entries:
            raise DataError(
                f"{len(self.draw_ids_E)} drawn ids and {len(self.draw_counts_E)} counts for {num_entries}"
            )
        if len(self.sampled_logprob_T) != len(self.num_unique_T):
            raise DataError(f"{len(self.sampled_logprob_T)} logprobs for {len(self.num_unique_T)} tokens")

    @property
    def width(self) -> int:
        """Draws per token."""
        return self.num_draws


@dataclass(frozen=True)
class HiddenSignal:
    """The teacher's last hidden state after its final norm, at every completion token: `hidden_TD`, float16.

    The head of the same checkpoint turns row t into the logits that token t was drawn from. 2 D bytes per
    token: for small corpora.
    """

    hidden_TD: Float16Array

    def __post_init__(self) -> None:
        if self.hidden_TD.ndim != 2:
            raise DataError(f"hidden states have shape {self.hidden_TD.shape}, not tokens x size")

    @property
    def width(self) -> int:
        """D."""
        return int(self.hidden_TD.shape[1])


TierSignal = SampledSignal | HiddenSignal
_KEY = pa.field("key", pa.string(), nullable=False)
SAMPLED_SCHEMA = pa.schema(
    [
        _KEY,
        pa.field("num_draws", pa.int32(), nullable=False),
        pa.field("num_unique", pa.list_(pa.int32()), nullable=False),
        pa.field("draw_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("draw_counts", pa.list_(pa.uint16()), nullable=False),
        pa.field("sampled_logprob", pa.list_(pa.float32()), nullable=False),
    ]
)
HIDDEN_SCHEMA = pa.schema(
    [
        _KEY,
        pa.field("hidden_size", pa.int32(), nullable=False),
        pa.field("hidden", pa.list_(pa.float16()), nullable=False),
    ]
)
TIER_SCHEMAS: dict[TierKind, pa.Schema] = {"sampled": SAMPLED_SCHEMA, "hidden": HIDDEN_SCHEMA}
# Byte planes: the upper halves of counts, logprobs and states repeat, and zstd finds that.
TIER_PLANES = ("num_unique", "draw_ids", "draw_counts", "sampled_logprob", "hidden")
