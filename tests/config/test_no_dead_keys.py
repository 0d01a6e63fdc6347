"""Zero dead keys: product code reads every leaf of the schema, or the leaf is marked as not acting yet.

The sources are searched for reads of attributes whose owner is known to be a section: from annotations of
parameters, fields and results, and from assignments and loops. Reading `x.seed` of something else doesn't
count, and neither does checking a value in `raystill.config`, which refuses and never acts.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from raystill.config.keys import all_keys
from raystill.config.schema import Config
from raystill.config.section import Section

PACKAGE = Path(__file__).resolve().parents[2] / "platform" / "raystill"
# Inside raystill.config these decide what `auto` or a size means, which is acting.
RESOLVERS = (
    "config/engine.py",
    "config/node_labels.py",
    "config/prepared.py",
    "config/signal_source.py",
    "config/student_init.py",
    "config/tuned_stage.py",
    "config/worker_range.py",
)
# A whole section that is handed on as a mapping, by file: here every key of it is read by name later.
DUMPED: dict[str, type[Section]] = {}

Classes = frozenset[type[Section]]
NOTHING: Classes = frozenset()


def subclasses(parent: type[Section]) -> Iterator[type[Section]]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


SECTIONS: dict[str, type[Section]] = {section.__name__: section for section in subclasses(Section)}


def classes_in(annotation: Any) -> Classes:
    """The sections that an annotation mentions, in a union, a list, or a string."""
    if isinstance(annotation, ast.AST):
        names = re.findall(r"\w+", ast.unparse(annotation))
        return frozenset(SECTIONS[name] for name in names if name in SECTIONS)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return frozenset({annotation})
    return frozenset(found for part in get_args(annotation) for found in classes_in(part))


class Sources:
    """The product's syntax trees, and what their annotations say about names."""

    def __init__(self) -> None:
        paths = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "config"]
        paths += [PACKAGE / name for name in RESOLVERS]
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
        self.results: dict[str, Classes] = dict.fromkeys(SECTIONS, NOTHING)
        self.results.update({name: frozenset({section}) for name, section in SECTIONS.items()})
        self.attributes: dict[str, Classes] = defaultdict(lambda: NOTHING)
        self.reads: set[tuple[type[Section], str]] = set()
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
                    self.results[node.name] = classes_in(node.returns) | self.results.get(node.name, NOTHING)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    self.attributes[node.target.id] |= classes_in(node.annotation)
        for _ in range(2):  # attributes of self that one pass finds, the next one reads
            for tree in self.trees.values():
                Scope(self, {}).visit_body(tree)


class Scope(ast.NodeVisitor):
    """One function or module: which sections its names hold."""

    def __init__(self, sources: Sources, names: dict[str, Classes]) -> None:
        self.sources = sources
        self.names = names

    def visit_body(self, node: ast.AST) -> None:
        for _ in range(2):  # a name may be used above the line that says what it holds
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        inner = Scope(self.sources, dict(self.names))
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            inner.names[argument.arg] = classes_in(argument.annotation) if argument.annotation else NOTHING
        inner.visit_body(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        Scope(self.sources, dict(self.names)).visit_body(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.names[node.target.id] = classes_in(node.annotation)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            for owner in self.infer(node.value):
                if node.attr in owner.model_fields:
                    self.sources.reads.add((owner, node.attr))
        self.generic_visit(node)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, source in zip(target.elts, value.elts, strict=False):
                self.bind(part, source)
        elif isinstance(target, ast.Tuple):
            for part in target.elts:  # enumerate, zip, items: any part may be the section
                self.bind(part, value)
        elif isinstance(target, ast.Name):
            self.names[target.id] = self.infer(value) or self.names.get(target.id, NOTHING)
        elif isinstance(target, ast.Attribute) and (found := self.infer(value)):
            self.sources.attributes[target.attr] |= found

    def infer(self, node: ast.expr) -> Classes:
        """The sections that an expression may hold, directly or as elements."""
        match node:
            case ast.Name(id=name):
                return self.names.get(name, NOTHING)
            case ast.Attribute(value=value, attr=name):
                owners = self.infer(value)
                if not owners:
                    return self.sources.attributes.get(name, NOTHING)
                fields = [
                    owner.model_fields[name].annotation for owner in owners if name in owner.model_fields
                ]
                return frozenset(found for annotation in fields for found in classes_in(annotation))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                found = self.sources.results.get(name, NOTHING)
                return found or frozenset().union(*(self.infer(argument) for argument in arguments))
            case ast.Call(func=ast.Attribute(attr=name)):
                return self.sources.results.get(name, NOTHING)
            case ast.ListComp(elt=element, generators=generators):
                for generator in generators:
                    self.bind(generator.target, generator.iter)
                return self.infer(element)
        return frozenset().union(*(self.infer(part) for part in self.parts_of(node)))

    @staticmethod
    def parts_of(node: ast.expr) -> list[ast.expr]:
        """The parts of an expression that may be its value, or hold it."""
        match node:
            case ast.IfExp(body=body, orelse=other):
                return [body, other]
            case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
                return parts
            case ast.Subscript(value=value) | ast.NamedExpr(value=value) | ast.Starred(value=value):
                return [value]
            case ast.BinOp(left=left, right=right):
                return [left, right]
        return []


def owner_of(path: str) -> type[Section]:
    """The section that holds the leaf at `path`."""
    parent = path.rpartition(".")[0].removesuffix(".*")
    section = all_keys()[parent].section if parent else Config
    assert section is not None
    return section


def dead_keys() -> list[str]:
    reads = Sources().reads
    reads |= {(section, name) for section in DUMPED.values() for name in section.model_fields}
    dead = []
    for key in all_keys().values():
        is_constant = len(key.choices) == 1 and not key.kinds - {type(key.choices[0])}
        if key.section is None and not key.not_yet and not is_constant:
            owner = owner_of(key.path)
            family = {owner, *(base for base in owner.__mro__ if base.__name__ in SECTIONS)}
            if not any((member, key.name) in reads for member in family):
                dead.append(key.path)
    return dead


def test_the_search_sees_reads_and_only_reads_of_sections() -> None:
    reads = Sources().reads
    assert any(owner.__name__ == "RunSection" and name == "dir" for owner, name in reads)
    assert not any(owner.__name__ == "OpenTokenizer" and name == "tokenize" for owner, name in reads)


def test_every_leaf_is_read_by_the_product() -> None:
    assert dead_keys() == []
