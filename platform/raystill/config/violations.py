"""Schema violations as problems: what was found where, what is allowed, and the likeliest repair."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from raystill.config.keys import Key, all_keys, find_key, nearest_keys
from raystill.config.secret import masked
from raystill.config.yaml_source import Node
from raystill.errors import Problem

_TRUE_WORDS, _FALSE_WORDS = ("yes", "y", "on", "true", "1"), ("no", "n", "off", "false", "0")
_MAX_SHOWN = 80


def find_violations(tree: Node, error: ValidationError) -> list[Problem]:
    """One problem per place in `tree` that the schema refuses, in the order of the schema."""
    problems: dict[str, Problem] = {}
    for found in error.errors(include_url=False, include_context=False, include_input=False):
        parents, path, node = _locate(tree, found["loc"], missing=found["type"] == "missing")
        if path in problems:
            continue  # another branch of a union, at the same value
        name = path.rpartition(".")[2]
        if found["type"] == "extra_forbidden":
            place = parents.key_places.get(name, parents.place)
            problems[path] = Problem(
                f"unknown key `{masked(path)}`", f"{place} ({masked(path)})", _respell(path)
            )
        elif found["type"] == "missing":
            problems[path] = Problem(
                f"`{path}` is missing", f"{parents.place} ({path})", f"add `{name}:`{_meaning(path)}"
            )
        else:
            problems[path] = _wrong_value(path, node, found["msg"])
    return list(problems.values())


def without_unknown_keys(tree: Node, error: ValidationError) -> Node | None:
    """`tree` without its unknown keys, or None if the schema refuses more than those."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if any(found["type"] != "extra_forbidden" for found in errors):
        return None
    for found in errors:
        parents, path, _ = _locate(tree, found["loc"], missing=False)
        assert isinstance(parents.value, dict)
        parents.value.pop(path.rpartition(".")[2], None)
    return tree


def _locate(tree: Node, location: Iterable[int | str], *, missing: bool) -> tuple[Node, str, Node]:
    """Parent, path and node of pydantic's `location`, which also names the branches of unions."""
    parent = node = tree
    parts: list[str] = []
    for part in location:
        if isinstance(node.value, dict) and part in node.value:
            parent, node = node, node.value[str(part)]
        elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            parent, node = node, node.value[part]
        elif missing and isinstance(node.value, dict):
            parent = node
        else:
            continue
        parts.append(str(part))
    return parent, ".".join(parts), node


def _respell(path: str) -> str:
    near = nearest_keys(path)
    if near:
        return "did you mean " + " or ".join(f"`{other}`" for other in near) + "?"
    parent = path.rpartition(".")[0]
    known = [key.name for key in all_keys().values() if key.path.rpartition(".")[0] == parent]
    return f"known here: {', '.join(known)}" if known else "`raystill config schema` lists every key"


def _meaning(path: str) -> str:
    key = find_key(path)
    return f" ({key.allowed}); {key.description}" if key else ""


def _wrong_value(path: str, node: Node, message: str) -> Problem:
    key = find_key(path)
    allowed = key.allowed if key else message
    return Problem(
        f"`{path}` is {_shown(node.plain())}; allowed: {allowed}",
        f"{node.place} ({path})",
        _repair(key, node.value) if key else message,
    )


def _repair(key: Key, value: Any) -> str:
    is_block = key.section is not None and not key.is_list
    if is_block and not key.kinds & {bool, int, float, str}:
        return f"put `key: value` lines below `{key.name}:`, or remove the line"
    if isinstance(value, str):
        if repaired := _repair_text(key, value):
            return repaired
    elif isinstance(value, bool) and any(isinstance(choice, str) for choice in key.choices):
        return "write one of the words, in quotes"
    elif isinstance(value, float) and int in key.kinds and value.is_integer():
        return f"write {int(value)}"
    elif isinstance(value, bool | int | float) and str in key.kinds and not key.choices:
        return f"in quotes it is text: {key.name}: '{json.dumps(value)}'"
    elif value is None:
        return "give a value, or remove the line to use the default"
    if list in key.kinds:
        return "write a list: [a, b], or lines that begin with `- `"
    if key.required:
        return f"{key.description}"
    return f"{key.description} Default: {_shown(key.default)}"


def _repair_text(key: Key, text: str) -> str:
    if bool in key.kinds:
        if text.lower() in (*_TRUE_WORDS, *_FALSE_WORDS):
            return f"write {'true' if text.lower() in _TRUE_WORDS else 'false'}, without quotes"
        return "write true or false"
    if key.kinds & {int, float}:
        digits = text.replace("_", "").replace(",", "").strip()
        try:
            float(digits)
        except ValueError:
            return "write a number" if key.required else f"write a number; default: {_shown(key.default)}"
        return f"write {digits}, without quotes, underscores or commas"
    choices = [choice for choice in key.choices if isinstance(choice, str)]
    near = difflib.get_close_matches(text.lower(), choices, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else ""


def _shown(value: Any) -> str:
    text = masked(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
