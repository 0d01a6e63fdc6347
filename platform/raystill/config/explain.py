"""Why a key has its value: meaning, what is allowed, who gave it, and what that replaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from raystill.config.keys import Key, all_keys, find_key, nearest_keys
from raystill.config.loaded import LoadedConfig
from raystill.errors import ConfigError


@dataclass(frozen=True)
class Replaced:
    """A value that a later file or --set replaced."""

    source: str
    value: Any


@dataclass(frozen=True)
class Explanation:
    """Everything there is to say about one key, as plain data (JSON-able).

    `source` is `file:line:col`, `--set key` or `default`. `note` says what the value alone doesn't, such as
    that the section isn't given. A section has its leaves as `leaves` and its content as `value`.
    """

    path: str
    value: Any
    default: Any
    allowed: str
    description: str
    source: str
    overrode: tuple[Replaced, ...] = ()
    note: str = ""
    leaves: tuple[Explanation, ...] = ()


def explain(loaded: LoadedConfig, path: str) -> Explanation:
    """What `path` (a leaf, a section, or an element of a list such as `datasets.0.name`) is, and why.

    Raises ConfigError with the nearest spelling for a path that the schema doesn't have.
    """
    path = path.strip(".")
    key = find_key(path) or _element(path)
    if key is None:
        near = nearest_keys(path)
        raise ConfigError(
            f"there is no key `{path}`",
            where=path,
            fix=f"did you mean {' or '.join(near)}?" if near else "`raystill config schema` lists every key",
        )
    return _explain(loaded, key, path)


def _explain(loaded: LoadedConfig, key: Key, path: str) -> Explanation:
    value, absent = _find(loaded.config, path)
    origin = loaded.provenance.get(path)
    leaves = () if absent else tuple(_explain_below(loaded, path, value))
    not_yet = "not supported yet" if key.not_yet else ""
    return Explanation(
        path=path,
        value=_plain(value),
        default=_plain(key.default),
        allowed=key.allowed,
        description=key.description,
        source=str(origin.place) if origin else _source_of_section(loaded, path),
        overrode=tuple(Replaced(str(old.place), old.value) for old in origin.overrode) if origin else (),
        note=f"{absent} is not given" if absent else not_yet,
        leaves=leaves,
    )


def _explain_below(loaded: LoadedConfig, path: str, value: Any) -> Iterator[Explanation]:
    """The leaves below a section or a list of sections."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            below = f"{path}.{name}"
            key = find_key(below)
            assert key is not None
            child = _explain(loaded, key, below)
            yield from child.leaves or (child,)
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from _explain_below(loaded, f"{path}.{index}", element)


def _element(path: str) -> Key | None:
    """The list that `path` picks an element of, if it does."""
    parent, _, last = path.rpartition(".")
    key = find_key(parent) if last.isdigit() else None
    return key if key is not None and key.is_list else None


def _find(config: Any, path: str) -> tuple[Any, str]:
    """The value at `path`, or None and the part of the path that isn't there."""
    value: Any = config
    done: list[str] = []
    for part in path.split("."):
        done.append(part)
        if isinstance(value, list):
            if not (part.isdigit() and int(part) < len(value)):
                return None, ".".join(done)
            value = value[int(part)]
        else:
            value = getattr(value, part)
        if value is None and ".".join(done) != path:
            return None, ".".join(done)
    return value, ""


def _source_of_section(loaded: LoadedConfig, path: str) -> str:
    """The places that gave anything below `path`, or `default`."""
    prefix = f"{path}."
    files = {
        origin.place.source: None for known, origin in loaded.provenance.items() if known.startswith(prefix)
    }
    return ", ".join(files) or "default"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(element) for element in value] if isinstance(value, list) else value


def explain_all(loaded: LoadedConfig) -> tuple[Explanation, ...]:
    """Every top-level section, in the schema's order."""
    return tuple(_explain(loaded, key, key.path) for key in all_keys().values() if "." not in key.path)
