"""What would become of a prompt table if its sources were read again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raystill.text.prompt_row import Prompt

_SHOWN = 3


def describe_changes(before: Sequence[Prompt], after: Sequence[Prompt]) -> list[str]:
    """One line per kind of difference between two tables, with a few ids each; none where they are equal.

    A prompt whose words or sampling differ under the same id is another prompt: it is asked again.
    """
    old, new = {prompt.id: prompt for prompt in before}, {prompt.id: prompt for prompt in after}
    both = [id_ for id_ in new if id_ in old]
    kinds = (
        ("new", [id_ for id_ in new if id_ not in old]),
        ("gone", [id_ for id_ in old if id_ not in new]),
        ("other words under the same id", [id_ for id_ in both if _asked(old[id_]) != _asked(new[id_])]),
        ("another right answer", [id_ for id_ in both if _judged(old[id_]) != _judged(new[id_])]),
        ("moved between train and eval", [id_ for id_ in both if old[id_].split != new[id_].split]),
    )
    return [f"{len(ids):,} prompts {kind}: {_some(ids)}" for kind, ids in kinds if ids]


def _asked(prompt: Prompt) -> object:
    return prompt.messages, prompt.sampling


def _judged(prompt: Prompt) -> object:
    return prompt.task, prompt.reference


def _some(ids: Collection[str]) -> str:
    shown = sorted(ids)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(ids) > _SHOWN else "")
