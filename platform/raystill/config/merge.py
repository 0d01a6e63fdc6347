"""Layers of configuration become one tree: later wins, mappings merge, lists and scalars are replaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from raystill.config.loaded import Origin
from raystill.config.secret import masked
from raystill.config.yaml_source import Node, Place, parse_yaml
from raystill.errors import ConfigError


def merge(old: Node, new: Node) -> Node:
    """`new` over `old`. What a value replaces is remembered in its `overrode`.

    Merging is associative as long as a path holds mappings in all layers or in none; a null between two
    mappings drops the keys before it.
    """
    if not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return replace(new, overrode=(*old.overrode, replace(old, overrode=()), *new.overrode))
    children = dict(old.value)
    for key, child in new.value.items():
        children[key] = merge(children[key], child) if key in children else child
    return replace(new, value=children, key_places={**old.key_places, **new.key_places})


def apply_override(tree: Node, override: str) -> Node:
    """`tree` with one `a.b.c=value` laid over it; the value is YAML, and a number picks a list's element.

    Raises ConfigError where the `=` or a part of the path is missing, or a list has no such element.
    """
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {masked(override)} is not KEY=VALUE"
            if not equals
            else f"--set {masked(path)}: no such path",
            where=f"--set {masked(override)}",
            fix="write --set training.steps=100",
        )
    source = f"--set {path.strip()}"
    value = parse_yaml(text, source, positions=False)
    return _put(tree, parts, value, Place(source))


def iter_origins(node: Node, path: str = "") -> Iterator[tuple[str, Origin]]:
    """The origin of every leaf below `node`, and of every list, by dotted path."""
    if isinstance(node.value, dict) and (node.value or not path):
        for key, child in node.value.items():
            yield from iter_origins(child, f"{path}.{key}" if path else key)
        return
    yield path, _origin(node)
    if isinstance(node.value, list):
        for index, child in enumerate(node.value):
            if isinstance(child.value, dict):
                yield from iter_origins(child, f"{path}.{index}")


def _put(tree: Node | None, parts: list[str], value: Node, place: Place) -> Node:
    if not parts:
        return value if tree is None else merge(tree, value)
    head, rest = parts[0], parts[1:]
    if tree is not None and isinstance(tree.value, list):
        return replace(tree, value=_put_element(tree.value, parts, value, place))
    if tree is not None and isinstance(tree.value, dict):
        child = _put(tree.value.get(head), rest, value, place)
        places = {**tree.key_places, head: tree.key_places.get(head, place)}
        return replace(tree, value={**tree.value, head: child}, key_places=places)
    below = Node({head: _put(None, rest, value, place)}, place, {head: place})
    return below if tree is None else merge(tree, below)


def _put_element(elements: list[Node], parts: list[str], value: Node, place: Place) -> list[Node]:
    head, rest = parts[0], parts[1:]
    if not (head.isascii() and head.isdigit() and int(head[:6]) < len(elements)):
        raise ConfigError(
            f"{place.source}: the list has {len(elements)} elements, `{head}` is not one of them",
            where=place.source,
            fix="elements count from 0; to replace the whole list, set it: --set 'a.list=[x, y]'",
        )
    changed = list(elements)
    changed[int(head)] = _put(changed[int(head)], rest, value, place)
    return changed


def _origin(node: Node) -> Origin:
    return Origin(node.plain(), node.place, tuple(_origin(old) for old in node.overrode))
