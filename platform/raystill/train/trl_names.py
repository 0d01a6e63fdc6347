"""What TRL's trainers log, from what a line of metrics.jsonl is made from: for dashboards made for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def name_as_trl(values: Mapping[str, Any], sums: Mapping[str, float], num_tokens: int) -> dict[str, float]:
    """A line's `values` and the `sums` of its steps (`metrics.SUM_NAMES`) under TRL's names.

    `num_tokens` positions were trained on since the first step, padding aside.
    """
    aliases: dict[str, float] = {"num_tokens": float(num_tokens)}
    if sums["tokens"]:
        aliases["mean_token_accuracy"] = sums["right"] / sums["tokens"]
    if "rollout/ended" in values:
        aliases["completions/clipped_ratio"] = 1.0 - values["rollout/ended"]
    return aliases
