"""Which stage a sweep trains."""

from __future__ import annotations

from typing import Literal

from raystill.config.tune import TuneSection


def resolve_tuned_stage(tune: TuneSection, *, has_distillation: bool) -> Literal["sft", "distill"]:
    """`tune.stage`; auto means distill where that stage is configured."""
    if tune.stage != "auto":
        return tune.stage
    return "distill" if has_distillation else "sft"
