"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from raystill.train.settings import TrainSettings

EPSILON = 1e-8


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW over what trains; weight decay on matrices only, not on norms and biases."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=EPSILON,
        fused=True,
    )


def learning_rate_at(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The learning rate of the optimizer step that follows `step` finished ones.

    Linear warm-up over warmup_ratio of the steps, then cosine or linear down to min_lr_ratio of the peak
    (reached after the last step), or constant.
    """
    peak = settings.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return peak
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * remaining)
