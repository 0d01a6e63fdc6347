"""Every key of the schema as plain data: path, meaning, allowed values, default; and the nearest spelling.

Paths are dotted. An element of a list is `*` in a key's path (`datasets.*.name`) and a number in a value's
path (`datasets.0.name`).
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raystill.config.schema import Config
from raystill.config.section import NOT_YET, Section

# What the same thing is called elsewhere.
_SYNONYMS = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "grad_accum_steps": "gradient_accumulation_steps",
    "grad_clip": "max_grad_norm",
    "max_steps": "steps",
    "total_steps": "steps",
    "max_length": "max_seq_len",
    "seq_len": "max_seq_len",
    "base_model": "base_model_name",
    "model_name_or_path": "base_model_name",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "max_tokens": "max_new_tokens",
    "lora_r": "r",
    "bf16": "bfloat16",
    "bfloat16": "bf16",
    "eval_strategy": "evaluation_strategy",
    "evaluation_strategy": "eval_strategy",
    "output_dir": "save_path",
    "save_total_limit": "max_checkpoints",
    "tau": "kd_temperature",
    "alpha": "kl_weight",
    "kd_weight": "kl_weight",
    "kd": "losses",
    "loss": "losses",
}
_BLOCK = "a block of keys"
_ARTICLES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    `annotation` and `details` are its type as the schema has it; `kinds` are the plain types of its values (a
    block is dict), `choices` the values of a closed choice;
    `section` is the type of the block below it, None for a leaf.
    """

    path: str
    description: str
    annotation: Any
    details: tuple[Any, ...]
    choices: tuple[Any, ...]
    kinds: frozenset[type]
    default: Any
    required: bool
    not_yet: bool
    section: type[Section] | None
    is_list: bool

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def allowed(self) -> str:
        """What its values may be, in words."""
        return describe_type(self.annotation, self.details)


@cache
def all_keys() -> dict[str, Key]:
    """Every key by path, sections and leaves, in the schema's order."""
    return {key.path: key for key in _walk(Config, "", not_yet=False)}


def find_key(path: str) -> Key | None:
    """The key that a value's path belongs to, or None."""
    return all_keys().get(_generic(path))


def nearest_keys(path: str, limit: int = 3) -> list[str]:
    """Known paths that `path` was probably meant to be, best first; empty where nothing is near."""
    path = _generic(path)
    parent, _, name = path.rpartition(".")
    siblings = {key.name: key.path for key in all_keys().values() if key.path.rpartition(".")[0] == parent}
    synonym = _SYNONYMS.get(name)
    if synonym in siblings:
        return [siblings[synonym]]
    if near := difflib.get_close_matches(name, siblings, n=1, cutoff=0.7):
        return [siblings[near[0]]]
    for wanted in (name, synonym):
        if same := [key.path for key in all_keys().values() if key.name == wanted]:
            return _closest_first(path, same)[:limit]
    names = {key.name for key in all_keys().values()}
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
        return _closest_first(path, (key.path for key in all_keys().values() if key.name == near[0]))[:limit]
    return difflib.get_close_matches(path, all_keys(), n=1, cutoff=0.75)


def describe_type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a type allows, in words: `a whole number > 0`, `one of cuda, cpu, auto`, `text or null`."""
    annotation, details = _unwrapped(annotation, metadata)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [describe_type(part) for part in get_args(annotation) if part is not type(None)]
        return " or ".join([*parts, "null"] if type(None) in get_args(annotation) else parts)
    if get_origin(annotation) is Literal:
        choices = [_written(choice) for choice in get_args(annotation)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else f"only {choices[0]}"
    if get_origin(annotation) is list:
        element = describe_type(get_args(annotation)[0])
        return "a list of blocks" if element == _BLOCK else f"a list of {element}"
    if annotation in _ARTICLES:
        title = next((detail.title for detail in details if getattr(detail, "title", None)), None)
        return title or _ARTICLES[annotation] + _bounds(details)
    return _BLOCK


def _walk(section: type[Section], prefix: str, *, not_yet: bool) -> Iterator[Key]:
    for name, info in section.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        extra = info.json_schema_extra
        waits = not_yet or (isinstance(extra, dict) and bool(extra.get(NOT_YET)))
        block, is_list = _block_of(info.annotation)
        yield Key(
            path=path,
            description=info.description or _first_line(block),
            annotation=info.annotation,
            details=(info, *info.metadata),
            choices=_choices(info.annotation),
            kinds=frozenset(_kinds(info.annotation)),
            default=None if block is not None and not is_list else _default(info),
            required=info.is_required(),
            not_yet=waits,
            section=block,
            is_list=is_list,
        )
        if block is not None:
            yield from _walk(block, f"{path}.*" if is_list else path, not_yet=waits)


def _block_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field's type holds, and whether it holds a list of them."""
    annotation, _ = _unwrapped(annotation, ())
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    if get_origin(annotation) is dict:  # keys of the user's own, such as tune.space
        return None, False
    for part in get_args(annotation):
        block, is_list = _block_of(part)
        if block is not None:
            return block, is_list or get_origin(annotation) is list
    return None, False


def _unwrapped(annotation: Any, metadata: Iterable[Any]) -> tuple[Any, list[Any]]:
    details = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for item in more:
            details += [item, *item.metadata] if isinstance(item, FieldInfo) else [item]
    return annotation, details


def _bounds(details: list[Any]) -> str:
    texts = []
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        limits = [getattr(detail, name) for detail in details if getattr(detail, name, None) is not None]
        texts += (
            [f"{sign} {limits[0]:g}" if isinstance(limits[0], float) else f"{sign} {limits[0]}"]
            if limits
            else []
        )
    if any(getattr(detail, "min_length", None) for detail in details):
        texts.append("that is not empty")
    return " " + " and ".join(texts) if texts else ""


def _choices(annotation: Any) -> tuple[Any, ...]:
    annotation, _ = _unwrapped(annotation, ())
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(choice for part in get_args(annotation) for choice in _choices(part))
    return ()


def _kinds(annotation: Any) -> Iterator[type]:
    annotation, _ = _unwrapped(annotation, ())
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Literal:
        yield from {type(choice) for choice in get_args(annotation)}
    else:
        plain = get_origin(annotation) or annotation
        yield plain if plain in (int, float, bool, str, list, type(None)) else dict


def _default(info: FieldInfo) -> Any:
    if info.default_factory is not None:
        return info.get_default(call_default_factory=True)
    return None if info.default is PydanticUndefined else info.default


def _first_line(block: type[Section] | None) -> str:
    return (block.__doc__ or "").partition("\n")[0] if block is not None else ""


def _written(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _generic(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _closest_first(path: str, candidates: Iterable[str]) -> list[str]:
    return sorted(candidates, key=lambda other: -difflib.SequenceMatcher(None, path, other).ratio())
