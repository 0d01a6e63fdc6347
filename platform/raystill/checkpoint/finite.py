"""Weights that are numbers: one NaN among them makes every logit, and every gradient, a NaN."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from raystill.errors import DataError


def require_finite_weights(weights: Iterable[tuple[str, torch.Tensor]], where: str, fix: str) -> None:
    """Raise DataError, naming the tensor, for the first weight that holds NaN or infinity.

    Reads every weight once, on the device that it is on.
    """
    for name, tensor in weights:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"weight {name!r} is not finite", where=where, fix=fix)
