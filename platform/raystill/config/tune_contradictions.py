"""What is wrong with a sweep's space: keys that don't exist, values that they don't allow, empty ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from raystill.config.keys import find_key, nearest_keys
from raystill.config.loaded import LoadedConfig
from raystill.config.signal_source import resolve_signal_source
from raystill.config.tune import Distribution, TuneSection
from raystill.config.tuned_stage import resolve_tuned_stage
from raystill.config.worker_range import worker_range
from raystill.errors import Problem

KINDS = ("choice", "grid", "uniform", "loguniform", "randint")
# Trials train from one store: what changes prompts, answers or their choice would ask the teacher again.
_TRAINING = (
    "train",
    "losses",
    "training",
    "student",
    "assistant",
    "curriculum",
    "process_supervision",
    "qat",
)
# What one of the stages alone reads.
_STAGE_OF = {"train.sft.": "sft", "train.distillation.": "distill", "losses.": "distill"}
_FIXED = {
    "training.num_workers": "all trials take the same resources",
    "train.sft.save_path": "trials would overwrite one another's copies",
    "train.distillation.output_dir": "trials would overwrite one another's copies",
}


def find_tune_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Every problem of `tune`: each names the key of the space and where it was given."""
    tune = loaded.config.tune
    if tune is None:
        return
    yield from _stage(loaded, tune)
    if tune.scheduler == "pbt" and tune.search == "optuna":
        yield Problem(
            "tune.scheduler: pbt changes values itself, and tune.search is optuna",
            loaded.where("tune.scheduler", "tune.search"),
            "set tune.search: random, or another scheduler",
        )
    if not tune.space:
        yield Problem(
            "`tune.space` is empty", loaded.where("tune.space"), "give at least one key and its values"
        )
    for path, distribution in tune.space.items():
        where = loaded.where(f"tune.space.{path}")
        problem = _key(path) or _unread(loaded, tune, path) or _kind(path, distribution, tune)
        if problem is None:
            problem = next(_values(loaded, path, distribution), None)
        if problem is not None:
            yield Problem(problem[0], where, problem[1])


def given_values(distribution: Distribution) -> tuple[str, list[Any]]:
    """The kind of a distribution and its list; the kind is empty unless exactly one is given."""
    given = [(kind, getattr(distribution, kind)) for kind in KINDS if getattr(distribution, kind) is not None]
    return given[0] if len(given) == 1 else ("", [])


def put_value(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of plain data with `value` at a dotted path; blocks on the way that are null are made."""
    head, _, rest = path.partition(".")
    below = tree.get(head)
    new = put_value(below if isinstance(below, dict) else {}, rest, value) if rest else value
    return {**tree, head: new}


def _stage(loaded: LoadedConfig, tune: TuneSection) -> Iterator[Problem]:
    config = loaded.config
    stage = resolve_tuned_stage(tune, has_distillation=config.train.distillation is not None)
    section = config.train.sft if stage == "sft" else config.train.distillation
    if section is None:
        key = "train.sft" if stage == "sft" else "train.distillation"
        yield Problem(
            f"the sweep trains {stage}, and `{key}` is not given", loaded.where("tune"), f"add {key}"
        )
    elif stage == "distill" and resolve_signal_source(config) != "store":
        yield Problem(
            "a sweep trains from stored signals, and train.distillation.teacher.source runs a teacher in "
            "every trial",
            loaded.where("train.distillation.teacher.source"),
            "set it to store, or train without a sweep",
        )
    least, most = worker_range(config.training)
    if least < most:
        yield Problem(
            f"training.num_workers is {config.training.num_workers}, and a trial's workers don't come and go",
            loaded.where("training.num_workers"),
            f"--set training.num_workers={least} for the sweep",
        )
    gpus = tune.resources.gpus
    if most > 1 and gpus is not None and 0 < gpus < 1:
        yield Problem(
            f"tune.resources.gpus is {gpus:g}, and the {most} workers of a trial can't share a GPU",
            loaded.where("tune.resources.gpus"),
            "set it to 1, or training.num_workers: 1",
        )


def _key(path: str) -> tuple[str, str] | None:
    key = find_key(path)
    if key is None:
        near = nearest_keys(path)
        return (
            f"there is no key `{path}`",
            f"did you mean {' or '.join(near)}?" if near else "`raystill config schema` lists every key",
        )
    if key.section is not None and not key.kinds & {int, float, str, bool}:
        return f"`{path}` is a block of keys", "name one of the keys below it"
    if path.partition(".")[0] not in _TRAINING:
        return (
            f"`{path}` is no key of training: trials train from the stored answers",
            f"use keys below {', '.join(_TRAINING)}",
        )
    if path in _FIXED:
        return f"`{path}` can't differ between trials: {_FIXED[path]}", "take it out of the space"
    return None


def _unread(loaded: LoadedConfig, tune: TuneSection, path: str) -> tuple[str, str] | None:
    """A key that no trial would look at: all of them would be alike."""
    config = loaded.config
    section = config.train.distillation
    stage = resolve_tuned_stage(tune, has_distillation=section is not None)
    for prefix, owner in _STAGE_OF.items():
        if path.startswith(prefix) and owner != stage:
            return (
                f"`{path}` changes nothing: the sweep trains {stage}",
                f"take it out of the space, or set tune.stage: {owner}",
            )
    if stage != "distill" or section is None or not path.startswith("student."):
        return None
    follows = config.train.sft is not None and config.assistant is None
    if section.init == "sft" or (section.init == "auto" and follows):
        return (
            f"`{path}` changes nothing: distill starts from the model that sft has made",
            "set train.distillation.init: student, or take it out of the space",
        )
    return None


def _kind(path: str, distribution: Distribution, tune: TuneSection) -> tuple[str, str] | None:
    kind, values = given_values(distribution)
    if not kind:
        return f"`{path}` needs exactly one of {', '.join(KINDS)}", "for example {uniform: [0.5, 2.0]}"
    if not values:
        return f"`{path}`: {kind} has no values", "give at least one"
    if kind not in ("choice", "grid"):
        low, high = values
        if low >= high:
            return f"`{path}`: {kind} from {low:g} to {high:g} is empty", "put the smaller number first"
        if kind == "loguniform" and low <= 0:
            return f"`{path}`: loguniform from {low:g} has no logarithm", "begin above 0"
        if tune.search == "grid":
            return f"`{path}`: a grid search can't try every value of {kind}", "give grid or choice"
    if kind == "grid" and tune.search == "optuna":
        return f"`{path}`: optuna draws values and crosses none", "give choice instead of grid"
    if kind == "grid" and tune.scheduler == "pbt":
        return f"`{path}`: pbt changes values as it goes", "give choice instead of grid"
    return None


def _values(loaded: LoadedConfig, path: str, distribution: Distribution) -> Iterator[tuple[str, str]]:
    """What the schema refuses of the values, or of a range's ends and middle."""
    kind, values = given_values(distribution)
    if kind in ("uniform", "loguniform"):
        low, high = values
        middle = math.sqrt(low * high) if kind == "loguniform" else low + (high - low) * 0.381966
        values = [low, high, middle]
    plain = loaded.config.model_copy(update={"tune": None}).model_dump(mode="json")
    allowed = getattr(find_key(path), "allowed", "")
    for value in values:
        try:
            type(loaded.config).model_validate(put_value(plain, path, value))
        except ValidationError:
            hint = (
                "; a range gives fractions: use randint" if "whole" in allowed and "uniform" in kind else ""
            )
            yield f"`{path}` can't be {value!r}", f"allowed: {allowed}{hint}"
