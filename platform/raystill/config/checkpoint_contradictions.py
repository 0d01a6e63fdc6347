"""Combinations of `training.checkpoint_cleanup` with other keys that can't both be meant."""

from __future__ import annotations

from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_CLEANUP = "training.checkpoint_cleanup"


def find_checkpoint_contradictions(loaded: LoadedConfig) -> Iterator[Problem]:
    """The best by a measurement need a measurement at the steps that are saved."""
    config = loaded.config
    cleanup = config.training.checkpoint_cleanup
    if cleanup.keep_best == 0 or not cleanup.metric.startswith("eval/"):
        return
    sft, distillation = config.train.sft, config.train.distillation
    found = []
    if sft is not None:
        found.append(("train.sft.eval_strategy", sft.eval_strategy))
    if distillation is not None:
        found.append(("train.distillation.evaluation_strategy", distillation.evaluation_strategy))
    for path, strategy in found:
        if strategy != "steps":
            yield Problem(
                f"`{_CLEANUP}.keep_best` compares {cleanup.metric}, and `{path}` is {strategy}: the "
                "checkpoints have no such measurement",
                loaded.where(f"{_CLEANUP}.keep_best", path),
                f"set `{path}` to steps, which measures at every save, or keep_best to 0",
            )
