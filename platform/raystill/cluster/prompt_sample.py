"""How long prompts and answers are, from the first rows of local sources.

A local teacher's tokenizer counts their tokens where it is small: large vocabularies take about four bytes a
token anyway, and loading one takes longer than a plan may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from raystill.cluster.stored_answers import BYTES_PER_TOKEN
from raystill.config.schema import Config
from raystill.errors import RaystillError

_ROWS = 200
_LARGEST_TOKENIZER = 4 << 20
_LARGEST_WHOLE_FILE = 16 << 20  # formats that can't be read from their beginning
_MESSAGE_TOKENS = 6  # what a chat template puts around a message
_END_TOKENS = 1


@dataclass(frozen=True)
class PromptSample:
    """Mean tokens of a prompt, and of its reference where most rows have one."""

    prompt_tokens: float
    answer_tokens: float | None


def sample_prompts(config: Config) -> PromptSample | None:
    """Read the first rows of every source; None where one of them can't be read cheaply, or at all."""
    from raystill.prompts.rows import BadRow
    from raystill.prompts.shapes import iter_prompts
    from raystill.prompts.sources import iter_rows, list_files, list_sources, resolve_format

    prompts = []
    try:
        for source in list_sources(config):
            if resolve_format(source) not in ("jsonl", "csv", "parquet"):
                return None
            if any(_must_be_read_whole(file) for file in list_files(source)):
                return None
            found = islice(iter_prompts(source, 0, iter_rows(source)), _ROWS)
            prompts += [row for row in found if not isinstance(row, BadRow)]
    except (RaystillError, OSError):
        return None  # the stage itself says what is wrong
    if not prompts:
        return None
    texts = [message["content"] for row in prompts for message in row.messages]
    references = [row.reference for row in prompts if row.reference]
    count = _token_counter(config)
    answers = None
    if len(references) > len(prompts) / 2:
        answers = count(references) / len(references) + _END_TOKENS
    return PromptSample((count(texts) + _MESSAGE_TOKENS * len(texts)) / len(prompts), answers)


def _must_be_read_whole(file: Path) -> bool:
    return file.suffix.lower() == ".json" and file.stat().st_size > _LARGEST_WHOLE_FILE


def _token_counter(config: Config) -> Callable[[list[str]], float]:
    """Counts the tokens of texts, by the teacher's tokenizer or by their bytes."""
    teacher = config.teacher.open
    file = None if teacher is None else Path(teacher.model.name).expanduser() / "tokenizer.json"
    if file is None or not file.is_file() or file.stat().st_size > _LARGEST_TOKENIZER:
        return _guess_tokens
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 (it raises nothing narrower; the stage says what is wrong with the file)
        return _guess_tokens
    return lambda texts: sum(
        len(coded.ids) for coded in tokenizer.encode_batch(texts, add_special_tokens=False)
    )


def _guess_tokens(texts: list[str]) -> float:
    return sum(len(text.encode("utf-8")) for text in texts) / BYTES_PER_TOKEN
