"""Next-token text for the quality benchmark: the standard library's sources, and a teacher trained on them.

Files fall into two halves by a hash of their names: the teacher trains on one, students learn and are
measured on the other. A row is a window of lines; its prompt names the file and the window. The teacher is
made by the product's own SFT stage, as a student of the text itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raystill.bench.quality_train import train_in_process
from raystill.config.load import load_config
from raystill.demo.chat_tokenizer import train_chat_tokenizer
from raystill.pipeline import run_pipeline
from raystill.prompts.python_source import STDLIB, list_python_files, source_root
from raystill.run.publish import publish_directory, publish_file
from raystill.store.importers.formats import ImportRequest, import_files

WINDOW_CHARACTERS = 360
VOCAB_SIZE = 2048
TEACHER_ROWS = 12_000
_TEACHER_SHAPE = (
    "student.hidden_size=192",
    "student.intermediate_size=576",
    "student.num_hidden_layers=4",
    "student.num_attention_heads=6",
    "student.num_key_value_heads=3",
    "student.max_position_embeddings=512",
    "student.initializer_range=0.06",
)


def build_text_store(directory: Path, tokenizer: Path, seed: int, num_rows: int) -> Path:
    """A store of `num_rows` windows that the teacher hasn't seen, drawn with `seed`; returns its path."""
    return _import_windows(directory, tokenizer, list(_iter_windows(seen=False)), seed, num_rows)


def train_text_teacher(root: Path, base: Path, steps: int, threads: int) -> Path:
    """The teacher's directory; trains where there is none yet, and goes on where that was interrupted.

    Ray must be running. `base` is the configuration that everything else is taken from.
    """
    tokenizer = root / "text-tokenizer"
    windows = list(_iter_windows(seen=True))
    if not tokenizer.exists():
        _make_tokenizer(tokenizer, windows)
    store = _import_windows(root / "text-teacher-data", tokenizer, windows, 0, TEACHER_ROWS)
    overrides = (
        f"run.dir={root}",
        "run.name=text-teacher",
        "prompts.sources=[]",
        "prompts.eval_size=100",
        "teacher.open=null",
        "teacher.engine=auto",
        f"teacher.base.from_store={store}",
        "teacher.signals.num_logprobs=0",
        "teacher.signals.capture=auto",
        f"student.tokenizer={tokenizer}",
        *_TEACHER_SHAPE,
        "train.distillation=null",
        f"train.sft.steps={steps}",
        "train.sft.learning_rate=2e-3",
        "train.sft.per_device_train_batch_size=16",
        "train.sft.eval_strategy=no",
    )
    loaded = load_config([base], overrides)
    paths = run_pipeline(loaded, until="generate").paths
    if not paths.model("sft").exists():
        train_in_process(loaded.config, paths, "sft", threads)
    return paths.model("sft")


def _import_windows(
    directory: Path, tokenizer: Path, windows: list[dict[str, Any]], seed: int, num_rows: int
) -> Path:
    chosen = np.random.default_rng(seed).permutation(len(windows))[:num_rows]
    os.makedirs(directory, exist_ok=True)
    file = directory / "windows.jsonl"
    with publish_file(file) as temporary:
        lines = (json.dumps(windows[index]) + "\n" for index in sorted(chosen.tolist()))
        temporary.write_text("".join(lines), encoding="utf-8")
    request = ImportRequest(
        "messages", (file,), directory / "store", "standard library", tokenizer=str(tokenizer)
    )
    import_files(request)
    return request.store


def _iter_windows(*, seen: bool) -> Iterator[dict[str, Any]]:
    """Windows of whole lines of one half of the files, as rows of a `messages` file."""
    root = source_root(STDLIB)
    for path in list_python_files(root):
        name = path.relative_to(root).as_posix()
        if (hashlib.sha256(name.encode()).digest()[0] % 2 == 0) is not seen:
            continue
        for number, text in enumerate(_cut(path.read_text(encoding="utf-8", errors="replace"))):
            turns = [
                {"role": "user", "content": f"{name}, part {number}"},
                {"role": "assistant", "content": text},
            ]
            yield {"id": f"{name}#{number}", "messages": turns}


def _cut(text: str) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if size + len(line) > WINDOW_CHARACTERS and size > WINDOW_CHARACTERS // 2:
            yield "".join(lines)
            lines, size = [], 0
        if len(line) <= WINDOW_CHARACTERS // 2:  # tables and long literals are no text
            lines.append(line)
            size += len(line)


def _make_tokenizer(directory: Path, windows: list[dict[str, Any]]) -> None:
    texts = (row["messages"][1]["content"] for row in windows)
    with publish_directory(directory) as temporary:
        train_chat_tokenizer(texts, VOCAB_SIZE).save_pretrained(temporary)
