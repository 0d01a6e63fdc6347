"""How long prompts and answers are, from some rows of local sources.

A local teacher's tokenizer counts their tokens where it is small: large vocabularies take about four bytes a
token anyway, and loading one takes longer than a plan may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from raystill.cluster.stored_answers import BYTES_PER_TOKEN
from raystill.config.schema import Config
from raystill.errors import RaystillError

if TYPE_CHECKING:
    from raystill.prompts.shapes import RawPrompt
    from raystill.prompts.sources import Source

_ROWS = 200
_LARGEST_TOKENIZER = 4 << 20
_LARGEST_WHOLE_FILE = 16 << 20  # formats that can't be read from their beginning
# What a chat template puts around a message besides its role, and behind the last one.
_MESSAGE_TOKENS, _HEADER_TOKENS = 4, 2
_END_TOKENS = 1

# Tokens of each text.
_Count = Callable[[Sequence[str]], list[float]]


@dataclass(frozen=True)
class PromptSample:
    """Mean tokens of a prompt, and of its reference where most rows have one.

    `kept` is the share of prompts that are not dropped for their length, and the means are those of these.
    `counted` has the rows of sources that say them nowhere, by path.
    """

    prompt_tokens: float
    answer_tokens: float | None
    kept: float = 1.0
    counted: Mapping[str, int] = field(default_factory=dict)


def sample_prompts(config: Config) -> PromptSample | None:
    """Read some rows of every source; None where one of them can't be read cheaply, or at all."""
    from raystill.prompts.sources import list_sources

    prompts: list[RawPrompt] = []
    counted: dict[str, int] = {}
    try:
        for source in list_sources(config):
            found = _sample_source(source, counted)
            if found is None:
                return None
            prompts += found
    except (RaystillError, OSError):
        return None  # the stage itself says what is wrong
    if not prompts:
        return None
    return _measure(config, prompts, counted)


def _sample_source(source: Source, counted: dict[str, int]) -> list[RawPrompt] | None:
    from raystill.prompts.rows import BadRow
    from raystill.prompts.shapes import iter_prompts
    from raystill.prompts.sources import iter_rows, list_files, resolve_format

    kind = resolve_format(source)
    if kind == "python_source":
        from raystill.cluster.python_sample import sample_python

        counted[source.path], rows = sample_python(source.location)
        if source.limit is not None:
            counted[source.path] = min(counted[source.path], source.limit)
        found = iter_prompts(source, 0, rows)
    elif kind not in ("jsonl", "csv", "parquet") or any(map(_must_be_read_whole, list_files(source))):
        return None
    else:
        found = islice(iter_prompts(source, 0, iter_rows(source)), _ROWS)
    return [row for row in found if not isinstance(row, BadRow)]


def _measure(config: Config, prompts: Sequence[RawPrompt], counted: Mapping[str, int]) -> PromptSample:
    from raystill.prompts.shapes import ROLES

    count = _token_counter(config)
    own = count(["\n".join(message["content"] for message in row.messages) for row in prompts])
    kept = list(zip(prompts, own, strict=True))
    limit = config.teacher.base.prompt_length
    if limit is not None and config.prompts.over_length == "drop":
        kept = [pair for pair in kept if pair[1] <= limit] or kept
    roles = dict(zip(ROLES, count(ROLES), strict=True))
    header = _HEADER_TOKENS + roles["assistant"]
    around = [
        header + sum(_MESSAGE_TOKENS + roles[message["role"]] for message in row.messages) for row, _ in kept
    ]
    tokens = sum(around) + sum(length for _, length in kept)
    references = [row.reference for row, _ in kept if row.reference]
    answers = None
    if len(references) > len(kept) / 2:
        answers = sum(count(references)) / len(references) + _END_TOKENS
    return PromptSample(tokens / len(kept), answers, len(kept) / len(prompts), counted)


def _must_be_read_whole(file: Path) -> bool:
    return file.suffix.lower() == ".json" and file.stat().st_size > _LARGEST_WHOLE_FILE


def _token_counter(config: Config) -> _Count:
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
    return lambda texts: [
        len(coded.ids) for coded in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _guess_tokens(texts: Sequence[str]) -> list[float]:
    return [len(text.encode("utf-8")) / BYTES_PER_TOKEN for text in texts]
