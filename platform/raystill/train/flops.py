"""Floating-point operations of a step, and what this device reaches on plain matrix products.

Two conventions, both as a share of the measured peak:

- `mfu_6nd`, the papers' (Chowdhery et al. 2022, appendix B): (6 N + 12 L D T) per token, with N all weights
  but the embedding table, L layers, D the attention's width and T the row's length; attention as if it were
  not causal, every token through the head, all weights trained.
- `mfu`, what this step needed: 2 operations per weight and token forward, 2 backward for the input, 2 more
  where the weight trains; causal attention at half; the head at the tokens that carry loss only.

Padding counts for nothing in either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from raystill.train.settings import Precision
from raystill.train.student import Student

_ROUNDS = 3
_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class ModelSize:
    """Weights of the layers (without embeddings and head) and of the head; how many of them train."""

    layer_weights: int
    layer_weights_trained: int
    head_weights: int
    head_trained: bool
    attention_width: int
    num_layers: int

    def count_6nd(self, sums: Mapping[str, float]) -> float:
        """Operations of the tokens in `sums` (`metrics.SUM_NAMES`) in the papers' convention."""
        weights = self.layer_weights + self.head_weights
        attention = 12 * self.num_layers * self.attention_width * sums["squares"]
        return 6 * weights * sums["real"] + attention

    def count_needed(self, sums: Mapping[str, float]) -> float:
        """Operations that the step needed."""
        layers = (4 * self.layer_weights + 2 * self.layer_weights_trained) * sums["real"]
        head = (6 if self.head_trained else 4) * self.head_weights * sums["tokens"]
        return layers + head + 6 * self.num_layers * self.attention_width * sums["squares"]


def measure_size(student: Student) -> ModelSize:
    """Count the weights of `student` by what they do."""
    config = student.causal_lm.config.get_text_config()
    head = student.head().weight_VD
    outside = {id(head), *(id(p) for p in student.causal_lm.get_input_embeddings().parameters())}
    inner = [p for p in student.network.parameters() if id(p) not in outside and p.ndim >= 2]
    heads = int(config.num_attention_heads)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelSize(
        layer_weights=sum(_numbers(p) for p in inner),
        layer_weights_trained=sum(_numbers(p) for p in inner if p.requires_grad),
        head_weights=head.numel(),
        head_trained=head.requires_grad,
        attention_width=heads * int(head_width),
        num_layers=int(config.num_hidden_layers),
    )


def _numbers(parameter: torch.Tensor) -> int:
    """Weights of a matrix; of a 4-bit one, of what it stands for."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def measure_peak(device: torch.device, precision: Precision) -> float:
    """Operations per second of a square matrix product in the type of a step: the best of three."""
    side, dtype = _SIDE.get(device.type, 1024), getattr(torch, precision)
    left = torch.ones(side, side, dtype=dtype, device=device)
    out = torch.mm(left, left)
    best = float("inf")
    for _ in range(_ROUNDS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(left, left, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
