"""The faults that are injected, and that each of them has a test which says so.

A test that shows what happens under a fault begins its docstring with the fault's label, or with several:
`F9.`, `F9: what it shows`, `F1, F2.`. There is no F37: a push to a hub, and nothing is pushed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
FAULTS = {
    "F1": "SIGKILL of the driver while answers are generated",
    "F2": "SIGKILL of one actor in the middle of its rows",
    "F3": "Ray's own processes die in a run",
    "F4": "SIGINT once and twice, SIGTERM",
    "F5": "429 with and without Retry-After, a burst of them",
    "F6": "500, 502, 503, timeouts, resets and half bodies from an endpoint",
    "F7": "401, 403, 404: a refused key, a model that isn't there",
    "F8": "200 with an error, no JSON, HTML, no choices, no content, another row's id",
    "F9": "answers that were cut off, filtered or refused",
    "F10": "a request that hangs or trickles",
    "F11": "answers out of order, and delivered twice",
    "F12": "the budget is used up",
    "F13": "the disk is full while answers are journaled",
    "F14": "the disk is full while a checkpoint is saved",
    "F15": "others fill the disk: watermarks, and the order in which checkpoints go",
    "F16": "SIGKILL at every step of publishing a checkpoint",
    "F17": "truncated and flipped bytes in a checkpoint's files",
    "F18": "a missing file in the newest checkpoint, foreign directories beside it",
    "F19": "a power loss: what was not flushed is gone",
    "F20": "a torn tail and damage in the middle of a journal",
    "F21": "a loss or gradient that is not finite",
    "F22": "weights and logits that are not finite",
    "F23": "a gradient that explodes",
    "F24": "nothing to learn in a batch, or in the whole data",
    "F25": "SIGKILL of a training worker",
    "F26": "a training worker has no memory left",
    "F27": "a row that can't be read, rendered or encoded",
    "F28": "a notice that the machine goes away",
    "F29": "the clock is set back, or stands still",
    "F30": "two processes on one run or store, and the lock of a dead one",
    "F31": "files of an older or newer program, and Ray's own that are torn",
    "F32": "the configuration changes between a run and its resume",
    "F33": "the data changes between a run and its resume",
    "F34": "a store that lacks parts, or is another teacher's, run's or tokenizer's",
    "F35": "a trial of a sweep crashes or diverges, or the sweep's driver is killed",
    "F36": "an export that ends in the middle",
    "F38": "no network at the start, and everything in the cache",
    "F39": "an engine's process dies or hangs, and the rows that make it so",
    "F40": "the disk reports errors for flush and rename",
}
# Such tests don't run with the others.
_RARE = ("soak", "gpu")
_LABELS = re.compile(r"^(F\d+(?:, F\d+)*)[.:]")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def iter_tests(path: Path) -> Iterator[Function]:
    """The tests of a module that every run of the suite may execute."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    marks = [
        ast.unparse(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    for node in ast.walk(module):
        if isinstance(node, Function) and node.name.startswith("test_"):
            own = [*marks, *map(ast.unparse, node.decorator_list)]
            if not any(f"mark.{rare}" in mark for mark in own for rare in _RARE):
                yield node


@cache
def labelled_tests() -> dict[str, list[str]]:
    """Label -> the tests whose docstring begins with it."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for test in iter_tests(path):
            labels = _LABELS.match(ast.get_docstring(test) or "")
            for label in labels.group(1).split(", ") if labels else ():
                found.setdefault(label, []).append(f"{path.relative_to(TESTS).as_posix()}::{test.name}")
    return found


@pytest.mark.parametrize("label", FAULTS)
def test_a_fault_has_a_test(label: str) -> None:
    assert labelled_tests().get(label), f"{label}: {FAULTS[label]}"


def test_no_label_is_unknown() -> None:
    assert labelled_tests().keys() <= FAULTS.keys()
