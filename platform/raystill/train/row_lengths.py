"""How long rows are, and what a limit on their length costs."""

from __future__ import annotations

import numpy as np

_NOTICEABLE_LOSS = 0.05


class RowLengths:
    """Collects rows' lengths in tokens, and the completion tokens that don't fit."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._lengths: list[int] = []
        self._completion_tokens = self._lost_tokens = 0

    def add(self, prompt_tokens: int, completion_tokens: int, kept_tokens: int) -> None:
        """Take in a row of which `kept_tokens` of the completion are trained on."""
        self._lengths.append(prompt_tokens + completion_tokens)
        self._completion_tokens += completion_tokens
        self._lost_tokens += completion_tokens - kept_tokens

    def describe_loss(self) -> tuple[str, ...]:
        """Quantiles and a limit that would keep nearly all, where more than 5 % of the answers is lost."""
        share = self._lost_tokens / max(self._completion_tokens, 1)
        if share <= _NOTICEABLE_LOSS:
            return ()
        quantiles = np.percentile(self._lengths, [50, 90, 99, 100], method="higher").astype(int)
        half, most, nearly_all, longest = quantiles.tolist()
        return (
            f"{share:.0%} of the completion tokens don't fit into rows of {self._max_tokens} tokens: half of "
            f"the rows have at most {half}, 90 % {most}, 99 % {nearly_all}, the longest {longest}; "
            f"training.max_seq_len: {nearly_all} would keep nearly all of them",
        )
