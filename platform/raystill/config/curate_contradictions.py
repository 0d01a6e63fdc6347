"""Values under `curate` that can't all be meant."""

from __future__ import annotations

from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem


def find_curation_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """One problem per contradiction, with every path that takes part in it."""
    curate, teacher = loaded.config.curate, loaded.config.teacher
    if curate is None:
        return
    if curate.best_of_n == "judge" and curate.judge is None:
        yield Problem(
            "`curate.best_of_n` is judge, and there is no `curate.judge`",
            loaded.where("curate.best_of_n"),
            "add curate.judge, or set best_of_n: logprob",
        )
    if curate.judge is not None and curate.judge.scores is None:
        if loaded.config.grade is None:
            yield Problem(
                "`curate.judge` has no `scores`, and there is no `grade` to give any",
                loaded.where("curate.judge.scores", "grade"),
                "name a file of scores, or describe a judge under grade",
            )
        elif curate.judge.column != "score":
            yield Problem(
                f"`curate.judge.column` is {curate.judge.column!r}, and `grade` writes the column score",
                loaded.where("curate.judge.column", "grade"),
                "remove it, or name a file in curate.judge.scores",
            )
    if curate.best_of_n == "logprob" and teacher.signals.num_logprobs == 0:
        yield Problem(
            "`curate.best_of_n` is logprob, and `teacher.signals.num_logprobs` is 0: no row has logprobs",
            loaded.where("curate.best_of_n", "teacher.signals.num_logprobs"),
            "store logprobs (1 is enough), or use a judge",
        )
    if curate.tool_calls is not None and not (curate.tool_calls.schema_path or teacher.base.tool_schema):
        yield Problem(
            "`curate.tool_calls` is on, and nothing says which tools there are",
            loaded.where("curate.tool_calls"),
            "set curate.tool_calls.schema_path or teacher.base.tool_schema",
        )
    if "length" in curate.finish_reasons and teacher.base.cut_off == "leave_out":
        yield Problem(
            "`curate.finish_reasons` keeps completions that max_new_tokens cut off, and "
            "`teacher.base.cut_off` leaves them out of training",
            loaded.where("curate.finish_reasons", "teacher.base.cut_off"),
            "set teacher.base.cut_off: train, or take length out of curate.finish_reasons",
        )
    length = curate.length
    if length.max_tokens is not None and length.max_tokens < length.min_tokens:
        yield Problem(
            f"`curate.length.min_tokens` ({length.min_tokens}) is above `max_tokens` ({length.max_tokens})",
            loaded.where("curate.length.min_tokens", "curate.length.max_tokens"),
            "no completion could pass: lower the one or raise the other",
        )
    named = [entry.source for entry in curate.mixture.sources] if curate.mixture is not None else []
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        yield Problem(
            f"`curate.mixture.sources` gives {twice!r} two weights",
            loaded.where("curate.mixture.sources"),
            "keep one of them",
        )
