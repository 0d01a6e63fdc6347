"""One YAML text as a tree that knows where every value was written.

PyYAML's parser gives events with positions; the tree is built here, because PyYAML's own composer forgets the
positions, keeps the last of two equal keys, expands aliases without limit and reads YAML 1.1 (`no` is false,
`1e-4` is text). This reader follows the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema):
only true and false are booleans, `1e-4` is a number, dates are text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raystill.config.secret import masked
from raystill.errors import ConfigError

MAX_BYTES = 2 * 1024 * 1024
MAX_DEPTH = 64
MAX_NODES = 100_000

Scalar = str | int | float | bool | None

_NULL = re.compile(r"(?:~|null|Null|NULL)?")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = ("!", *(_CORE + name for name in ("str", "int", "float", "bool", "null")))
_COLLECTION_TAGS = {
    yaml.SequenceStartEvent: ("!", _CORE + "seq"),
    yaml.MappingStartEvent: ("!", _CORE + "map"),
}
_MAX_DIGITS = 400  # far above any sensible number, far below Python's limit on parsing integers


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file with line and column (from 1), or `--set key` with neither."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value, where it was written, and the values of earlier files that it replaced (oldest first).

    `place` is the value's; in a mapping, `key_places` has the keys'. `size` counts the nodes below, so that
    aliases can't multiply without limit.
    """

    value: Scalar | dict[str, Node] | list[Node]
    place: Place
    key_places: dict[str, Place] = field(default_factory=dict)
    overrode: tuple[Node, ...] = ()
    size: int = 1

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def load_yaml_file(path: str | os.PathLike[str]) -> Node:
    """The tree of a YAML file; an empty file is an empty mapping.

    Raises ConfigError with file:line:col for what isn't UTF-8 YAML with a mapping on top and within limits.
    """
    name = os.fspath(path)
    node = parse_yaml(_read(name), name)
    if node.value is None:
        return Node({}, Place(name, 1, 1))
    if not isinstance(node.value, dict):
        kind = "a list" if isinstance(node.value, list) else "a single value"
        raise ConfigError(
            f"the file holds {kind}; a configuration is `section:` with `key: value` lines below it",
            where=str(node.place),
            fix="start with a section such as `run:`; `raystill config schema` lists them",
        )
    return node


def parse_yaml(text: str, source: str, *, positions: bool = True) -> Node:
    """The tree of one YAML document. `positions=False` is for text that isn't a file (`--set`)."""
    _refuse_unprintable(text, source)
    return _Composer(text, source, positions).compose()


def scalar_of(text: str) -> Scalar:
    """What a plain (unquoted) scalar means in the YAML 1.2 core schema."""
    if len(text) <= _MAX_DIGITS:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
            return int(text, 0)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    return None if _NULL.fullmatch(text) else text


def _read(name: str) -> str:
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"the file is larger than {MAX_BYTES // 2**20} MiB, too large for a configuration",
            where=name,
            fix="data belongs into files that prompts.sources or datasets name",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"the file is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            where=f"{name}:{line}",
            fix="save it as UTF-8 text",
        ) from error


def _unreadable(name: str, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        import difflib

        folder = Path(name).parent
        names = sorted(entry.name for entry in folder.glob("*.y*ml")) if folder.is_dir() else []
        near = difflib.get_close_matches(Path(name).name, names, n=1)
        fix = (
            f"did you mean {folder / near[0]}?" if near else "check the path; it is relative to where you are"
        )
        return ConfigError("there is no such configuration file", where=name, fix=fix)
    if isinstance(error, IsADirectoryError):
        return ConfigError(
            "a directory, not a configuration file", where=name, fix="name the YAML file in it"
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError(f"can't read the configuration file: {reason}", where=repr(name)[1:-1])


def _refuse_unprintable(text: str, source: str) -> None:
    found = _UNPRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - (text.rfind("\n", 0, found.start()) + 1) + 1
        raise ConfigError(
            f"character U+{ord(found.group()):04X} is not allowed in a configuration",
            where=str(Place(source, line, column)),
            fix="delete the character; is this a text file?",
        )


class _Composer:
    """Builds the tree of one document from the parser's events."""

    def __init__(self, text: str, source: str, positions: bool) -> None:
        self._lines = text.splitlines()
        self._source = source
        self._positions = positions
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events: Iterator[Any] = yaml.parse(text, Loader=loader)
        self._anchors: dict[str, Node] = {}
        self._num_nodes = 0

    def compose(self) -> Node:
        try:
            next(self._events)  # the stream's start
            event = next(self._events)
            if isinstance(event, yaml.StreamEndEvent):
                return Node(None, self._place(event))
            node = self._node(next(self._events), depth=1)
            next(self._events)  # the document's end
            event = next(self._events)
            if not isinstance(event, yaml.StreamEndEvent):
                raise self._error("a second YAML document in one file", event, "remove the `---` line")
        except yaml.YAMLError as error:
            raise self._syntax_error(error) from error
        return node

    def _node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(
                f"nested deeper than {MAX_DEPTH} levels", event, "is this a configuration file?"
            )
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            self._refuse_tag(event)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event), self._place(event))
            self._count(1, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, event: Any, depth: int) -> Node:
        children: list[Node] = []
        self._count(1, event)
        while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
            children.append(self._node(inner, depth + 1))
        return Node(children, self._place(event), size=1 + sum(child.size for child in children))

    def _mapping(self, event: Any, depth: int) -> Node:
        children: dict[str, Node] = {}
        key_places: dict[str, Place] = {}
        self._count(1, event)
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            key = self._key(inner, depth)
            if key in children:
                raise self._error(
                    f"key `{masked(key)}` is given twice; it is already at {key_places[key]}",
                    inner,
                    "keep one of the two",
                )
            key_places[key] = self._place(inner)
            children[key] = self._node(next(self._events), depth + 1)
        size = 1 + sum(child.size for child in children.values())
        return Node(children, self._place(event), key_places, size=size)

    def _key(self, event: Any, depth: int) -> str:
        if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            raise self._error(
                "a list or a mapping can't be a key", event, "quote text that has { } or [ ] in it"
            )
        key = self._node(event, depth + 1).value
        if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            raise self._error(
                "merge keys (<<) are YAML 1.1",
                event,
                "put shared values into a file of their own: --config shared.yaml this.yaml",
            )
        if not isinstance(key, str):
            raise self._error(f"{key!r} can't be a key, a key is text", event, "quote it")
        return key

    def _alias(self, event: Any) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            raise self._error(
                f"alias *{event.anchor} has no anchor &{event.anchor} that ends before it",
                event,
                "define the anchor above, or write the value out; text that starts with * needs quotes",
            )
        self._count(node.size, event)
        return node

    def _count(self, num_nodes: int, event: Any) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > MAX_NODES:
            raise self._error(
                f"more than {MAX_NODES} values after aliases are expanded", event, "is this a configuration?"
            )

    def _scalar(self, event: Any) -> Scalar:
        text: str = event.value
        if found := _UNPRINTABLE.search(text):  # from an escape such as "\0"
            raise self._error(
                f"character U+{ord(found.group()):04X} is not allowed in a value", event, "delete the escape"
            )
        if event.tag is None:
            plain = event.implicit[0]  # not quoted, not a block
            return scalar_of(text) if plain else text
        kind = event.tag.rpartition(":")[2]
        value = text if kind == "str" or event.tag == "!" else scalar_of(text)
        if kind == "float" and type(value) is int:
            value = float(value)
        python_type = {"int": int, "float": float, "bool": bool, "null": type(None)}.get(kind, str)
        if type(value) is not python_type:
            raise self._error(f"{masked(text)!r} is not a !!{kind}", event, "remove the tag")
        return value

    def _refuse_tag(self, event: Any) -> None:
        if event.tag not in _COLLECTION_TAGS.get(type(event), _SCALAR_TAGS):
            tag = event.tag.replace(_CORE, "!!")
            raise self._error(
                f"tag `{tag}` is not allowed here: a configuration is data, it builds no objects",
                event,
                "write plain values",
            )

    def _place(self, event: Any) -> Place:
        mark = event.start_mark
        return Place(self._source, mark.line + 1, mark.column + 1) if self._positions else Place(self._source)

    def _error(self, what: str, event: Any, fix: str) -> ConfigError:
        place = self._place(event)
        return ConfigError(what + self._snippet(place), where=str(place), fix=fix)

    def _syntax_error(self, error: yaml.YAMLError) -> ConfigError:
        mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
        if start is not None and (mark is None or mark.line >= len(self._lines)):
            mark = start  # something is still open at the end: show where it began
        problem = getattr(error, "problem", None) or "the text is not YAML"
        context = getattr(error, "context", None)
        what = f"YAML syntax error: {problem}" + (f" ({context})" if context else "")
        if mark is None or not self._positions:
            return ConfigError(what, where=self._source, fix="quote text that has : # { } [ ] or * in it")
        place = Place(self._source, mark.line + 1, mark.column + 1)
        if mark.line >= len(self._lines) and self._lines:
            place = Place(self._source, len(self._lines), len(self._lines[-1]) + 1)
        line = self._lines[mark.line] if mark.line < len(self._lines) else ""
        found = line[mark.column : mark.column + 1]
        if "\t" in line[: len(line) - len(line.lstrip())] or found == "\t":
            fix = "indent with spaces; YAML allows no tab there"
        elif found in ("@", "`", "%"):
            fix = "quote the value"
        else:
            fix = "check this line and the one above: indentation, a missing `:` or space after it, quotes"
        return ConfigError(what + self._snippet(place), where=str(place), fix=fix)

    def _snippet(self, place: Place) -> str:
        if not 1 <= place.line <= len(self._lines):
            return ""
        line = masked(self._lines[place.line - 1].replace("\t", "→"))
        start = max(0, place.column - 60)
        caret = " " * (min(place.column, len(line) + 1) - 1 - start) + "^"
        margin = f"    {place.line} | "
        return f"\n{margin}{line[start : start + 100]}\n{' ' * len(margin)}{caret}"
