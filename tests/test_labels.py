"""The faults that are injected and the bad inputs that are tried, and that each has a test which says so.

A test that shows what happens begins its docstring with the label, or with several: `F9.`, `F9: what it
shows`, `F27, I18.`. A test of a fault shows the run's way out of it; a test of a bad input one clear error
before anything expensive, with what, where and a fix, or the handling that the input's name promises. There
is no F37: a push to a hub, and nothing is pushed.
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
INPUTS = {
    "I1": "YAML that can't be parsed, or with tabs",
    "I2": "an unknown key, with the nearest spelling",
    "I3": "a value of another type, words for booleans, 1e-4",
    "I4": "a key given twice",
    "I5": "alias bombs, object tags and huge files",
    "I6": "keys that can't both be meant",
    "I7": "an environment variable for a key that isn't set",
    "I8": "a secret written into the configuration",
    "I9": "an endpoint without a scheme, or a key in plain text",
    "I10": "a model or data set that isn't there, or is gated",
    "I11": "a branch instead of a commit",
    "I12": "a model that brings its own code",
    "I13": "weights that are pickles",
    "I14": "a source that is missing, empty or filtered to nothing",
    "I15": "broken lines, byte order marks, CRLF, trailing commas",
    "I16": "missing columns",
    "I17": "ids that are missing or used twice",
    "I18": "conversations of a wrong shape",
    "I19": "two dialects of conversations in one source",
    "I20": "lone surrogates, NUL, invalid UTF-8",
    "I21": "prompts beyond the teacher's context, contexts that are no number",
    "I22": "loss tokens that don't fit into a row",
    "I23": "no chat template, or one without marks for the assistant's turns",
    "I24": "a template that doubles BOS or leaves out EOS",
    "I25": "no pad token, or the EOS as one",
    "I26": "a student with another tokenizer than the logprobs",
    "I27": "vocabularies that differ in padding only",
    "I28": "more logprobs than there can be",
    "I29": "an endpoint without logprobs",
    "I30": "numbers out of their range",
    "I31": "LoRA targets that match nothing",
    "I32": "a LoRA rank or adapter that doesn't fit the base",
    "I33": "more workers or devices than there are",
    "I34": "a device, type or package that isn't here",
    "I35": "too little disk or memory for what is planned",
    "I36": "an output directory that is taken, a file, or can't be written",
    "I37": "names and paths that lead elsewhere",
    "I38": "markup, links and escapes in a teacher's text",
    "I39": "a search space that makes no sense",
    "I40": "a sweep's metric that is never reported, or never a number",
    "I41": "an unknown task, or a data set that needs the network",
    "I42": "exports in a format, type or state that can't be served",
    "I43": "checkpoints and stages of other data or a newer program",
    "I44": "a Ray cluster out of reach, of another version or without a token",
    "I45": "proxies and certificates between here and the endpoint",
    "I46": "an expensive run without a cap",
    "I47": "too many empty answers",
    "I48": "a student that is no smaller than its teacher",
}
# Such tests don't run with the others.
_RARE = ("soak", "gpu")
_LABELS = re.compile(r"^([FI]\d+(?:, [FI]\d+)*)[.:]")

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


@pytest.mark.parametrize("label", [*FAULTS, *INPUTS])
def test_each_has_a_test(label: str) -> None:
    assert labelled_tests().get(label), f"{label}: {(FAULTS | INPUTS)[label]}"


def test_no_label_is_unknown() -> None:
    assert labelled_tests().keys() <= (FAULTS | INPUTS).keys()
