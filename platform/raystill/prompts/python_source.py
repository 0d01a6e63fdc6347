"""Prompts from Python source files: one per documented module, class or function.

Every definition gives exactly one prompt, of a kind chosen by a hash of its name, so a prompt that is held
out shares its definition with no prompt that is trained on:

* `document`: write the docstring of this source          (reference: the docstring)
* `complete`: write the body after signature and docstring (reference: the body)
* `explain`:  explain the signature and docstring in other words
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.prompts.rows import BadRow, RawRow, excerpt_of

STDLIB = "stdlib"
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_MAX_DOCUMENTED_LINES = 80
_MAX_LISTED_NAMES = 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_root(path: str) -> Path:
    """The directory that a source's `path` means; `stdlib` is the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib")) if path == STDLIB else Path(path).expanduser()


def list_python_files(root: Path) -> list[Path]:
    """Python files below `root` by path, without tests, caches, installed packages and links leading out."""
    boundary = root.resolve()
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".py" and path.resolve().is_relative_to(boundary):
                files.append(path)
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def iter_python_source(root: Path) -> Iterator[RawRow | BadRow]:
    """Prompts of a tree, in the order of files and lines. A file that doesn't parse is one bad row."""
    for path in list_python_files(root):
        yield from iter_file_prompts(root, path)


def iter_file_prompts(root: Path, path: Path) -> Iterator[RawRow | BadRow]:
    """Prompts of one file below `root`, in the order of lines."""
    name = path.relative_to(root).as_posix()
    try:
        text = _read_source(path)
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError) as error:
        yield BadRow(str(path), "python", f"not Python: {error}", excerpt_of(path.read_bytes()[:200]))
        return
    source = _SourceFile(name, text.split("\n"))
    for definition in _iter_definitions(tree, source):
        yield RawRow(f"{path}:{definition.line}", source.build_prompt(definition))


def _read_source(path: Path) -> str:
    content = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class _Definition:
    node: ast.Module | ast.ClassDef | Function
    qualified_name: str
    line: int
    docstring: str


def _iter_definitions(tree: ast.Module, source: _SourceFile) -> Iterator[_Definition]:
    def visit(node: ast.AST, scope: str) -> Iterator[_Definition]:
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            named = "" if isinstance(node, ast.Module) else node.name
            scope = f"{scope}.{named}" if scope and named else scope or named
            docstring = ast.get_docstring(node)
            if docstring and docstring.strip():
                yield _Definition(node, scope, getattr(node, "lineno", 1), docstring)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                yield from visit(child, scope)

    yield from visit(tree, "")


@dataclass(frozen=True)
class _SourceFile:
    """A file's name below its root, and its lines (line 1 first)."""

    name: str
    lines: list[str]

    @property
    def module(self) -> str:
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def build_prompt(self, definition: _Definition) -> dict[str, Any]:
        """The row of one definition: id, prompt and, where there is one, the reference."""
        node = definition.node
        identity = f"{self.name}:{definition.line}:{definition.qualified_name}"
        reference: str | None
        if isinstance(node, ast.Module):
            prompt, reference = self._document_module(node, definition.docstring)
        elif isinstance(node, ast.ClassDef):
            prompt, reference = self._document_class(node, definition)
        else:
            kind = hashlib.sha256(identity.encode("utf-8")).digest()[0] % 3
            prompt, reference = self._ask_function(node, definition, kind)
        return {"id": identity, "prompt": prompt, "reference": reference, "task": "text"}

    def _document_module(self, node: ast.Module, docstring: str) -> tuple[str, str]:
        names = [
            child.name
            for child in node.body
            if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_")
        ]
        listed = ", ".join(names[:_MAX_LISTED_NAMES]) or "no public names"
        return f"Write the docstring of the Python module `{self.module}`. It defines: {listed}.", docstring

    def _document_class(self, node: ast.ClassDef, definition: _Definition) -> tuple[str, str]:
        outline = [self._header(node)]
        for child in node.body:
            if isinstance(child, Function):
                outline.append(textwrap.indent(self._header(child), "    ") + "\n        ...")
        if len(outline) == 1:
            outline.append("    ...")
        shown = "\n".join(outline[: _MAX_LISTED_NAMES + 1])
        return (
            f"Write the docstring of this class from the Python module `{self.module}`:\n\n"
            f"```python\n{shown}\n```",
            definition.docstring,
        )

    def _ask_function(self, node: Function, definition: _Definition, kind: int) -> tuple[str, str | None]:
        header, body = self._header(node), self._body(node)
        quoted = textwrap.indent(f'"""{definition.docstring}\n"""', "    ")
        name = f"{self.module}.{definition.qualified_name}"
        if kind == 0 and body and body.count("\n") < _MAX_DOCUMENTED_LINES:
            shown = f"{header}\n{textwrap.indent(body, '    ')}"
            return f"Write the docstring of `{name}`:\n\n```python\n{shown}\n```", definition.docstring
        if kind == 1 and body:
            return f"Write the body of `{name}`:\n\n```python\n{header}\n{quoted}\n```", body
        return (
            f"Explain in your own words what `{name}` does and when to call it:\n\n"
            f"```python\n{header}\n{quoted}\n```",
            None,
        )

    def _header(self, node: ast.ClassDef | Function) -> str:
        """Decorators and signature, dedented; of a one-line definition, only the part before its body."""
        first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
        docstring = node.body[0]
        lines = self.lines[first - 1 : docstring.lineno - 1]
        if docstring.lineno == node.lineno or not lines:
            line = self.lines[docstring.lineno - 1].encode("utf-8")[: docstring.col_offset]
            lines = [*lines, line.decode("utf-8")]
        return textwrap.dedent("\n".join(lines)).rstrip()

    def _body(self, node: Function) -> str:
        """The statements after the docstring, dedented; empty where there are none, or all on one line."""
        if len(node.body) < 2 or node.body[1].lineno <= (node.body[0].end_lineno or 0):
            return ""
        start = node.body[0].end_lineno or node.body[0].lineno
        return textwrap.dedent("\n".join(self.lines[start : node.end_lineno])).strip("\n")
