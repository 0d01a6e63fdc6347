"""Prompts from Python files: the running standard library, and the corners of small files."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from raystill.prompts.python_source import iter_python_source, list_python_files
from raystill.prompts.rows import BadRow, RawRow
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import load_prompts


def rows_of(tmp_path: Path, text: str | bytes, name: str = "pkg/mod.py") -> list[dict[str, Any]]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    rows = list(iter_python_source(tmp_path))
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [row.value for row in rows if isinstance(row, RawRow)]


@pytest.fixture(scope="module")
def stdlib_prompts(prepared_stdlib: Any) -> list[Prompt]:
    return load_prompts(prepared_stdlib.paths.prompt_table)


def test_the_standard_library_gives_5000_distinct_prompts(
    prepared_stdlib: Any, stdlib_prompts: list[Prompt]
) -> None:
    manifest = prepared_stdlib.prepare({"path": "stdlib", "format": "python_source"}).manifest
    counts = manifest.counts
    assert counts["rejected"] == 0
    assert counts["rows_in"] == sum(counts[fate] for fate in ("kept", "duplicates", "dropped", "rejected"))
    texts = {prompt.messages[-1]["content"] for prompt in stdlib_prompts}
    assert len(texts) == counts["kept"] >= 5_000
    assert max(len(line) for text in texts for line in text.splitlines()) > 200
    assert any(not text.isascii() for text in texts)
    assert not any("site-packages" in prompt.id or "/test" in prompt.id for prompt in stdlib_prompts)


def test_held_out_definitions_are_not_trained_on(stdlib_prompts: list[Prompt]) -> None:
    held_out = {prompt.messages[-1]["content"] for prompt in stdlib_prompts if prompt.split == "eval"}
    trained = {prompt.messages[-1]["content"] for prompt in stdlib_prompts if prompt.split == "train"}
    assert 0.01 < len(held_out) / len(stdlib_prompts) < 0.03
    assert not held_out & trained
    assert len({prompt.id for prompt in stdlib_prompts}) == len(stdlib_prompts)


def test_references_are_the_code_that_was_left_out(stdlib_prompts: list[Prompt]) -> None:
    asked = [(prompt.messages[-1]["content"], prompt.reference) for prompt in stdlib_prompts]
    bodies = [reference or "" for text, reference in asked if text.startswith("Write the body")]
    assert len(bodies) > 1_000
    assert sum(_is_body(body) for body in bodies) >= 0.99 * len(bodies)
    assert all(reference for text, reference in asked if text.startswith("Write the docstring"))


def _is_body(body: str) -> bool:
    """Whether it parses as a function's body (a string whose lines start further left may not)."""
    try:
        ast.parse("async def f():\n    " + body.replace("\n", "\n    "))
    except SyntaxError:
        return False
    return True


def test_one_prompt_per_documented_definition(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        '"""Module."""\n\n\ndef plain():\n    return 1\n\n\nclass Box:\n    """Holds."""\n\n'
        '    @property\n    def size(self):\n        """Its size."""\n        return 3\n\n\n'
        'if True:\n    async def later(a,\n                    b=2):\n        """Wait."""\n        await b\n',
    )
    assert [row["id"] for row in rows] == [
        "pkg/mod.py:1:",
        "pkg/mod.py:8:Box",
        "pkg/mod.py:12:Box.size",
        "pkg/mod.py:18:later",
    ]
    module, box, size, later = (row["prompt"] for row in rows)
    assert module == "Write the docstring of the Python module `pkg.mod`. It defines: plain, Box."
    assert "class Box:\n    @property\n    def size(self):\n        ..." in box
    assert "`pkg.mod.Box.size`" in size
    assert "@property\ndef size(self):" in size
    assert "async def later(a,\n                b=2):" in later
    assert rows[1]["reference"] == "Holds."


def test_the_answer_is_not_in_the_prompt(tmp_path: Path) -> None:
    code = "".join(
        f'def f{index}(x):\n    """Say secret {index}."""\n    y = x + {index}\n    return y\n\n\n'
        for index in range(30)
    )
    kinds = set()
    for index, row in enumerate(rows_of(tmp_path, code)):
        kinds.add(row["prompt"].split(" `")[0])
        if row["prompt"].startswith("Write the docstring"):
            assert row["reference"] == f"Say secret {index}."
            assert "secret" not in row["prompt"]
            assert f"    y = x + {index}\n    return y" in row["prompt"]
        elif row["prompt"].startswith("Write the body"):
            assert row["reference"] == f"y = x + {index}\nreturn y"
            assert "y =" not in row["prompt"]
        else:
            assert row["reference"] is None
    assert len(kinds) == 3


@pytest.mark.parametrize(
    "code",
    [
        'def f(): "doc"',
        'def f(): "doc"; return 1',
        'class C: "doc"',
        'def f():\n    """doc"""',
        'def f(\n    a,\n): "doc"',
        'é = 1; \ndef f(a="ünï"): "doc"',
        'def f():\n\t"doc"\n\treturn 1',
        'def f():\r\n    """doc\r\n    two"""\r\n    return 1\r\n',
        "\x0cdef f():\n    'doc'\n    return '\x0c'\n",
    ],
)
def test_unusual_layouts(tmp_path: Path, code: str) -> None:
    (row,) = rows_of(tmp_path, code)
    assert "def f(" in row["prompt"] or "class C:" in row["prompt"]
    assert "\r" not in row["prompt"]


def test_declared_encodings(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, '# -*- coding: latin-1 -*-\n"""Grüße."""\n'.encode("latin-1"))
    assert row["reference"] == "Grüße."


def test_unreadable_files_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""Fine."""')
    (tmp_path / "b.py").write_text("print 'python two'")
    (tmp_path / "c.py").write_bytes(b"# \xff\xfe\n")
    (tmp_path / "d.py").write_bytes(b"x = '\0'")
    good, *bad = iter_python_source(tmp_path)
    assert isinstance(good, RawRow)
    assert [row.code for row in bad if isinstance(row, BadRow)] == ["python"] * 3


def test_what_is_skipped_and_in_which_order(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a.py", "tests/x.py", ".venv/x.py", "lib/site-packages/x.py", "a/t.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"""Doc."""')
    (tmp_path / "link.py").symlink_to(Path(ast.__file__))
    assert [path.relative_to(tmp_path).as_posix() for path in list_python_files(tmp_path)] == [
        "a.py",
        "a/z.py",
        "b.py",
    ]
