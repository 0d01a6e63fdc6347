"""Curricula that contradict themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_ROUNDING = 1e-9


def find_curriculum_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Phases that don't fit together, and shares that are more than everything."""
    curriculum = loaded.config.curriculum
    if curriculum is None:
        return
    lengths, schedule = curriculum.seq_lengths, curriculum.schedule
    where = loaded.where("curriculum.seq_lengths", "curriculum.schedule")
    if lengths and len(schedule) < len(lengths) - 1:
        yield Problem(
            f"`curriculum.seq_lengths` has {len(lengths)} phases, `curriculum.schedule` {len(schedule)} ends",
            where,
            "give the step at which each phase but the last one ends",
        )
    if schedule and not lengths:
        yield Problem(
            "`curriculum.schedule` has no effect without `curriculum.seq_lengths`",
            where,
            "give the longest rows of each phase, or remove the schedule",
        )
    if any(right <= left for values in (lengths, schedule) for left, right in pairwise(values)):
        yield Problem("a curriculum's lengths and steps rise", where, "put them in rising order")
    for name, mix in (("mix", curriculum.mix), ("mix_end", curriculum.mix_end)):
        total = sum(mix.values())
        if mix and not 0 < total <= 1 + _ROUNDING:
            yield Problem(
                f"the shares of `curriculum.{name}` add up to {total:g}",
                loaded.where(f"curriculum.{name}"),
                "let them add up to 1; less leaves the rest to the sources not named",
            )
    if curriculum.mix_end and not curriculum.mix:
        yield Problem(
            "`curriculum.mix_end` has no effect without `curriculum.mix`",
            loaded.where("curriculum.mix_end"),
            "give the shares to begin with",
        )
