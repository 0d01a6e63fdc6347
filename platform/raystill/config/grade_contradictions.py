"""Values under `grade` that can't all be meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from raystill.config.grade import DEFAULT_PATTERN, GradeSection
from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_NEEDED = ("{conversation}", "{answer}")


def find_grading_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """One problem per contradiction, with every path that takes part in it."""
    grade = loaded.config.grade
    if grade is None:
        return
    yield from _judge(loaded, grade)
    yield from _reply(loaded, grade)
    for place in [field for field in _NEEDED if field not in grade.template]:
        yield Problem(
            f"`grade.template` has no {place}: the judge would not see it",
            loaded.where("grade.template"),
            f"write {place} where it belongs",
        )


def _judge(loaded: LoadedConfig, grade: GradeSection) -> Iterator[Problem]:
    if (grade.open is None) == (grade.closed is None):
        yield Problem(
            "`grade` needs one judge: either `grade.open` or `grade.closed`",
            loaded.where("grade.open", "grade.closed"),
            "describe one of them, with model.name",
        )
        return
    kind = "open" if grade.closed is None else "closed"
    section = grade.open or grade.closed
    if section is not None and (section.data.download.size or section.data.download.path):
        yield Problem(
            f"`grade.{kind}.data.download` has no effect: a judge is asked, nothing is downloaded",
            loaded.where(f"grade.{kind}.data.download"),
            "remove it",
        )
    if grade.closed is not None and (grade.engine != "auto" or loaded.is_changed("grade.vllm")):
        yield Problem(
            "`grade.engine` and `grade.vllm` have no effect: `grade.closed` is asked",
            loaded.where("grade.engine", "grade.vllm", "grade.closed"),
            "remove them, or describe the judge under grade.open",
        )


def _reply(loaded: LoadedConfig, grade: GradeSection) -> Iterator[Problem]:
    if grade.lowest >= grade.highest:
        yield Problem(
            f"`grade.lowest` ({grade.lowest:g}) is not below `grade.highest` ({grade.highest:g})",
            loaded.where("grade.lowest", "grade.highest"),
            "give a range",
        )
    try:
        groups = re.compile(grade.pattern).groups
    except re.error as error:
        groups = 0
        yield Problem(f"`grade.pattern` is no regular expression: {error}", loaded.where("grade.pattern"))
    else:
        if groups == 0:
            yield Problem(
                "`grade.pattern` has no group: nothing says which part of a match is the score",
                loaded.where("grade.pattern"),
                "put parentheses around the number",
            )
    if not grade.structured:
        return
    if grade.pattern != DEFAULT_PATTERN:
        yield Problem(
            "`grade.structured` decides how a reply is written, and `grade.pattern` expects another form",
            loaded.where("grade.structured", "grade.pattern"),
            "keep one of the two",
        )
    has_schemas = grade.engine == "vllm" or (grade.engine == "auto" and find_spec("vllm") is not None)
    if grade.open is not None and not has_schemas:
        yield Problem(
            "`grade.structured` forces replies into a schema, which the transformers engine can't do",
            loaded.where("grade.structured", "grade.engine"),
            "use vLLM or a closed judge, or set structured: false: the reply is searched for the score",
        )
