"""The index of bad inputs: each has a test whose docstring begins with its label, as `I4.` or `I1, I5: why`.

Such a test shows one clear error before anything expensive, with what, where and a fix, or the handling that
the input's name promises.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LABELS = re.compile(r"(I\d+(?:, I\d+)*)[.:]")
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


def find_labels() -> dict[str, list[str]]:
    """Tests by the label that their docstrings begin with."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                match = LABELS.match(ast.get_docstring(node) or "")
                for label in match.group(1).split(", ") if match else ():
                    found.setdefault(label, []).append(f"{path.name}::{node.name}")
    return found


def test_every_bad_input_has_a_test_that_says_so() -> None:
    found = find_labels()
    assert [f"{label}: {name}" for label, name in INPUTS.items() if label not in found] == []


def test_no_test_has_a_label_without_a_meaning() -> None:
    assert {label: tests for label, tests in find_labels().items() if label not in INPUTS} == {}
