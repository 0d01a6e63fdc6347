"""Prompts of Python trees, estimated without parsing every file."""

from __future__ import annotations

from pathlib import Path

from raystill.cluster.python_sample import sample_python
from raystill.cluster.workload import estimate_workload
from raystill.config.schema import Config

FUNCTION = '''def f{number}(x):
    """Say something about {number}."""
    text = """not a docstring"""
    return x + {number}, text


'''


def write_tree(root: Path, files: int) -> int:
    """Files of one to seven documented functions; returns how many functions there are."""
    root.mkdir()
    total = 0
    for index in range(files):
        count = 1 + index % 7
        (root / f"m{index}.py").write_text("".join(FUNCTION.format(number=n) for n in range(count)))
        total += count
    return total


def test_a_few_files_tell_how_many_prompts_there_are(tmp_path: Path) -> None:
    total = write_tree(tmp_path / "tree", 80)
    estimate, rows = sample_python(tmp_path / "tree")
    assert estimate == total  # every docstring has one other text beside it, in all files alike
    assert len(rows) >= 40 and all("prompt" in row.value for row in rows)
    assert sample_python(tmp_path / "tree") == (estimate, rows)


def test_a_tree_without_docstrings_has_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n")
    assert sample_python(tmp_path) == (0, [])


def test_a_plan_knows_the_rows_of_a_tree(tmp_path: Path) -> None:
    total = write_tree(tmp_path / "tree", 40)
    source = {"path": str(tmp_path / "tree"), "format": "python_source"}
    teacher = {"open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 8}}}
    config = Config.model_validate({"prompts": {"sources": [source]}, "teacher": teacher})
    work = estimate_workload(config, None, None)
    assert work.rows == total and work.prompt_tokens is not None and work.completion_tokens is not None
    source["limit"] = 10  # type: ignore[assignment]
    limited = Config.model_validate({"prompts": {"sources": [source]}, "teacher": teacher})
    assert estimate_workload(limited, None, None).rows == 10
