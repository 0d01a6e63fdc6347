"""Merging: later wins, mappings recursively, and every value remembers where it came from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.merge import apply_override, iter_origins, merge
from raystill.config.yaml_source import Node, Place, parse_yaml
from raystill.errors import ConfigError

_SECTIONS = st.sampled_from(["p", "q"])
_LEAVES = st.sampled_from(["a", "b", "c"])
_VALUES = st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=3), st.none())
# Sections and leaves have names of their own, so a path holds a mapping in every layer or in none.
_TREES = st.recursive(
    st.dictionaries(_LEAVES, _VALUES, max_size=3),
    lambda inner: st.builds(
        lambda leaves, sections: {**leaves, **sections},
        st.dictionaries(_LEAVES, _VALUES, max_size=3),
        st.dictionaries(_SECTIONS, inner, max_size=2),
    ),
    max_leaves=8,
)


def node_of(value: Any, source: str) -> Node:
    place = Place(source, 1, 1)
    if isinstance(value, dict):
        return Node({key: node_of(child, source) for key, child in value.items()}, place)
    if isinstance(value, list):
        return Node([node_of(child, source) for child in value], place)
    return Node(value, place)


def merged(old: Any, new: Any) -> Any:
    """The rule in its plainest form."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merged(old[key], child) if key in old else child for key, child in new.items()}}


@given(_TREES, _TREES, _TREES)
def test_merging_is_associative(a: Any, b: Any, c: Any) -> None:
    x, y, z = node_of(a, "a"), node_of(b, "b"), node_of(c, "c")
    left, right = merge(merge(x, y), z), merge(x, merge(y, z))
    assert left.plain() == right.plain() == merged(merged(a, b), c)
    assert {path: origin.place for path, origin in iter_origins(left)} == {
        path: origin.place for path, origin in iter_origins(right)
    }


@given(_TREES, _TREES)
def test_provenance_names_the_last_layer_that_gave_a_value(a: Any, b: Any) -> None:
    x, y = node_of(a, "a"), node_of(b, "b")
    given_by_b = dict(iter_origins(y))
    given_by_a = dict(iter_origins(x))
    for path, origin in iter_origins(merge(x, y)):
        winner = given_by_b.get(path) or given_by_a[path]
        assert (origin.value, origin.place.source) == (winner.value, winner.place.source)
        replaced = [old.place.source for old in origin.overrode]
        is_section = isinstance(origin.value, dict)  # an empty one, which merges
        in_both = path in given_by_a and path in given_by_b and not is_section
        assert replaced == (["a"] if in_both else [])


@given(_TREES, _TREES)
def test_merging_changes_neither_layer(a: Any, b: Any) -> None:
    x, y = node_of(a, "a"), node_of(b, "b")
    before = copy.deepcopy((x, y))
    merge(x, y)
    assert (x, y) == before


def test_every_value_that_was_replaced_is_remembered_oldest_first() -> None:
    tree = Node({}, Place("default"))
    for source, value in (("one", 1), ("two", 2), ("three", 3)):
        tree = merge(tree, node_of({"s": {"k": value}}, source))
    ((_, origin),) = iter_origins(tree)
    assert origin.value == 3
    assert [(old.place.source, old.value) for old in origin.overrode] == [("one", 1), ("two", 2)]


def test_null_drops_a_section_and_lists_are_replaced() -> None:
    tree = merge(parse_yaml("s: {a: 1}\nl: [1, 2]", "a"), parse_yaml("s: null\nl: [3]", "b"))
    assert tree.plain() == {"s": None, "l": [3]}
    assert merge(tree, parse_yaml("s: {b: 2}", "c")).plain() == {"s": {"b": 2}, "l": [3]}


@pytest.mark.parametrize(
    ("override", "result"),
    [
        ("s.k=2", {"s": {"k": 2}, "l": [{"x": 1}]}),
        ("s.k=1e-4", {"s": {"k": 1e-4}, "l": [{"x": 1}]}),
        ("s.new.deep=[1, 2]", {"s": {"k": 1, "new": {"deep": [1, 2]}}, "l": [{"x": 1}]}),
        ("s={b: 2}", {"s": {"k": 1, "b": 2}, "l": [{"x": 1}]}),
        ("s=", {"s": None, "l": [{"x": 1}]}),
        ("l.0.x=5", {"s": {"k": 1}, "l": [{"x": 5}]}),
        ("l=[]", {"s": {"k": 1}, "l": []}),
        ("s.k=a=b", {"s": {"k": "a=b"}, "l": [{"x": 1}]}),
        ("s.k='7'", {"s": {"k": "7"}, "l": [{"x": 1}]}),
        ("s.k.below=1", {"s": {"k": {"below": 1}}, "l": [{"x": 1}]}),
    ],
)
def test_overrides(override: str, result: Any) -> None:
    tree = parse_yaml("s: {k: 1}\nl: [{x: 1}]", "f.yaml")
    assert apply_override(tree, override).plain() == result
    assert tree.plain() == {"s": {"k": 1}, "l": [{"x": 1}]}


def test_an_override_is_named_as_the_origin_and_the_file_as_overrode() -> None:
    tree = apply_override(parse_yaml("s: {k: 1}", "f.yaml"), "s.k=2")
    origin = dict(iter_origins(tree))["s.k"]
    assert str(origin.place) == "--set s.k"
    assert [str(old.place) for old in origin.overrode] == ["f.yaml:1:8"]


@pytest.mark.parametrize(
    "override", ["a", "", "=1", ".a=1", "a..b=1", "a.=1", "l.1.x=2", "l.-1=2", "l.x=2", "l.²=2", "a=[1"]
)
def test_overrides_that_make_no_sense(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_override(parse_yaml("l: [{x: 1}]", "f.yaml"), override)
