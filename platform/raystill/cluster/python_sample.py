"""How many prompts a tree of Python source gives, and some of them, without parsing all of it.

Documented definitions go with triple quotes, which are counted in every file; how many prompts a pair of them
is worth, and what prompts look like, is learnt from a few files that are parsed.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raystill.prompts.rows import RawRow

_FILES = 14
_ROWS_PER_FILE = 12
# Parsing takes about a second per 2 MB, and a plan should not.
_LARGEST_PARSED_BYTES = 48 << 10
_MOST_BYTES = 64 << 20


def sample_python(root: Path) -> tuple[int, list[RawRow]]:
    """An estimate of a tree's prompts, and a sample of them; (0, []) where nothing is documented.

    Files are drawn in proportion to their triple quotes and give the same number of prompts each, so every
    prompt of a file that is small enough is as likely.
    """
    from raystill.prompts.python_source import iter_file_prompts, list_python_files
    from raystill.prompts.rows import RawRow

    marks: dict[Path, int] = {}
    sizes: dict[Path, int] = {}
    read = 0
    files = list_python_files(root)
    for path in files:
        content = path.read_bytes()
        marks[path] = (content.count(b'"""') + content.count(b"'''")) // 2
        sizes[path] = len(content)
        read += len(content)
        if read > _MOST_BYTES:
            break
    total = sum(marks.values()) * len(files) / max(1, len(marks))
    ratios: list[float] = []
    rows: list[RawRow] = []
    for path in _draw({path: n for path, n in marks.items() if sizes[path] <= _LARGEST_PARSED_BYTES}):
        found = [row for row in iter_file_prompts(root, path) if isinstance(row, RawRow)]
        ratios.append(len(found) / marks[path])
        step = max(1, len(found) // _ROWS_PER_FILE)
        rows += found[::step][:_ROWS_PER_FILE]
    return (round(total * sum(ratios) / len(ratios)), rows) if ratios else (0, [])


def _draw(marks: dict[Path, int]) -> list[Path]:
    """Files at even distances along all of their triple quotes; one may be drawn twice."""
    ends = list(accumulate(marks.values()))
    if not ends or ends[-1] == 0:
        return []
    number = min(_FILES, ends[-1])
    paths, place = list(marks), 0
    drawn: list[Path] = []
    for index in range(number):
        wanted = (index + 0.5) * ends[-1] / number
        while ends[place] < wanted:
            place += 1
        drawn.append(paths[place])
    return drawn
