"""What an objective returns. The training loop divides, once, by the global number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Loss:
    """A sum over `num_tokens` tokens that carry loss, and detached sums to log (same divisor)."""

    sum: torch.Tensor
    num_tokens: int
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
