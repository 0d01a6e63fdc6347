"""How one prompt of a source may ask to be sampled: its optional `sampling` object, checked where it is read.

    {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_new_tokens": 200, "json_schema": {...}}

What a row leaves out comes from the teacher's pipeline. Held-out prompts stay greedy whatever they ask for;
of theirs only `max_new_tokens` and `json_schema` count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

RowSampling = dict[str, Any]

_MAX_TEMPERATURE = 100.0


def parse_row_sampling(value: Any) -> RowSampling | None:
    """The checked settings of a row, None where it asks for nothing. `value` may be JSON text.

    Columns of Parquet files have every field in every row, so a field that is null counts as left out.
    Raises ValueError saying what is wrong.
    """
    if isinstance(value, str):
        value = _from_json("sampling", value) if value.strip() else None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"sampling is a {type(value).__name__} instead of an object")
    given = {name: setting for name, setting in value.items() if setting is not None}
    unknown = sorted(set(given) - set(_CHECKS))
    if unknown:
        raise ValueError(f"sampling has the unknown key {unknown[0]!r}; known: {', '.join(_CHECKS)}")
    return {name: _CHECKS[name](given[name]) for name in _CHECKS if name in given} or None


def _temperature(value: Any) -> float:
    if not _is_number(value) or not 0.0 <= value <= _MAX_TEMPERATURE:
        raise ValueError(f"sampling.temperature is {value!r}; allowed: 0 to {_MAX_TEMPERATURE:g}")
    return float(value)


def _top_p(value: Any) -> float:
    if not _is_number(value) or not 0.0 < value <= 1.0:
        raise ValueError(f"sampling.top_p is {value!r}; allowed: above 0, at most 1")
    return float(value)


def _top_k(value: Any) -> int:
    return _whole("top_k", value, least=0)


def _max_new_tokens(value: Any) -> int:
    return _whole("max_new_tokens", value, least=1)


def _json_schema(value: Any) -> dict[str, Any]:
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if isinstance(value, str):
        value = _from_json("sampling.json_schema", value)
    if not isinstance(value, dict):
        raise ValueError(f"sampling.json_schema is a {type(value).__name__} instead of an object")
    try:
        validator_for(value).check_schema(value)
    except SchemaError as error:
        raise ValueError(f"sampling.json_schema is no JSON Schema: {error.message}") from error
    return value


def _whole(name: str, value: Any, least: int) -> int:
    if not _is_number(value) or value != int(value) or value < least:
        raise ValueError(f"sampling.{name} is {value!r}; allowed: a whole number from {least} on")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _from_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is text that is not JSON") from error


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "max_new_tokens": _max_new_tokens,
    "json_schema": _json_schema,
}
