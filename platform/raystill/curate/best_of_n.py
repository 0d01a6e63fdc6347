"""Several completions of one prompt: the best is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from raystill.curate.candidate import Drop
from raystill.curate.facts import Fact


def find_beaten(facts: Sequence[Fact], scores: Mapping[str, float]) -> dict[str, Drop]:
    """Keys whose prompt has a better completion, by `scores`; one without a score is worse than any other.

    Of equal scores the first sample wins.
    """
    by_prompt: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_prompt[fact.prompt_id].append(fact)
    drops: dict[str, Drop] = {}
    for samples in by_prompt.values():
        ranked = sorted(samples, key=lambda fact: (-scores.get(fact.key, -float("inf")), fact.order))
        for fact in ranked[1:]:
            drops[fact.key] = Drop("not_best", f"of {len(samples)}; {ranked[0].key} is")
    return drops


def mean_logprobs(facts: Sequence[Fact]) -> dict[str, float]:
    """The teacher's mean logprob of its own completion per token, by key, where it is stored."""
    return {fact.key: fact.mean_logprob for fact in facts if fact.mean_logprob is not None}
