"""Contradictions of `teacher.signals.kind`: which engine can give what, and when."""

from __future__ import annotations

from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_KIND = "teacher.signals.kind"
_EXACT_ENGINES = ("auto", "transformers")


def find_tier_contradictions(loaded: LoadedConfig) -> Iterator[Problem]:
    """Draws and hidden states come from open weights, by the score stage with the transformers engine."""
    teacher = loaded.config.teacher
    kind = teacher.signals.kind
    if kind == "topk":
        return
    if teacher.engine not in _EXACT_ENGINES:
        yield Problem(
            f"`{_KIND}` is {kind}, and the {teacher.engine} engine gives the top k only: it shows neither "
            "whole distributions nor hidden states",
            loaded.where(_KIND, "teacher.engine"),
            f"set teacher.engine: auto or transformers, or {_KIND}: topk",
        )
    elif teacher.closed is not None and teacher.open is None:
        yield Problem(
            f"`{_KIND}` is {kind}, and an API gives neither whole distributions nor hidden states",
            loaded.where(_KIND, "teacher.closed"),
            f"describe a teacher with open weights under teacher.open, or set {_KIND}: topk",
        )
    if teacher.signals.capture == "generation":
        yield Problem(
            f"`{_KIND}` is {kind}, and `teacher.signals.capture` is generation: only a top k comes with "
            "the text",
            loaded.where(_KIND, "teacher.signals.capture"),
            "set teacher.signals.capture: score",
        )
