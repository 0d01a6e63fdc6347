"""The formats that can be imported, and the import itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from raystill.errors import ConfigError
from raystill.store.identity import StoreIdentity
from raystill.store.importers.answer import BadAnswer, ImportedAnswer
from raystill.store.importers.axolotl import iter_axolotl
from raystill.store.importers.distillkit import find_compression_config, iter_distillkit
from raystill.store.importers.load_answers import ImportCounts, load_answers
from raystill.store.importers.messages import iter_messages
from raystill.store.importers.openai_batch import iter_openai_batch
from raystill.store.repair import sweep_dead_writers
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.tokenizer import chat_template_sha256, tokenizer_sha256

ImportFormat = Literal["openai-batch", "distillkit", "axolotl", "messages"]
IMPORT_FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)
DEFAULT_PARTITIONS = 8
_LOOK_AHEAD = 1000


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and into which store. `inputs`: the batch input files; `codec`: DistillKit's YAML."""

    format: ImportFormat
    files: tuple[Path, ...]
    store: Path
    teacher: str
    tokenizer: str | None = None
    inputs: tuple[Path, ...] = ()
    codec: Path | None = None
    split: str = "train"
    num_partitions: int = DEFAULT_PARTITIONS
    licence_note: str = ""


def import_files(request: ImportRequest) -> tuple[TeacherStore, ImportCounts]:
    """Import; returns the store and what became of the files' rows.

    The store's engine is "imported:<format>" and its teacher the name that was given: nothing here can be
    mistaken for what raystill generated. Raises ConfigError for options that don't fit the format, DataError
    for files that can't be read and for a store of another teacher.
    """
    _check_options(request)
    chat = None if request.tokenizer is None else load_chat_format(request.tokenizer)
    answers, widest = _look_ahead(_iter_format(request, chat))
    store = _open(request, chat, widest)
    sweep_dead_writers(store)
    counts = load_answers(
        store, answers, split=request.split, num_logprobs=store.identity.num_logprobs or None
    )
    return store, counts


def _iter_format(request: ImportRequest, chat: ChatFormat | None) -> Iterator[ImportedAnswer | BadAnswer]:
    match request.format:
        case "openai-batch":
            return iter_openai_batch(request.files, request.inputs, chat)
        case "distillkit":
            config = find_compression_config(request.files, request.codec)
            return iter_distillkit(request.files, config, chat)
        case "axolotl":
            return iter_axolotl(request.files, chat)
        case "messages":
            return iter_messages(request.files, chat)


def _look_ahead(
    answers: Iterator[ImportedAnswer | BadAnswer],
) -> tuple[Iterable[ImportedAnswer | BadAnswer], int]:
    """The same answers, and the number of logprobs that the widest of the first ones has."""
    first = [answer for _, answer in zip(range(_LOOK_AHEAD), answers, strict=False)]
    widths = [
        answer.signal.num_logprobs
        for answer in first
        if isinstance(answer, ImportedAnswer) and answer.signal is not None
    ]
    return chain(first, answers), max(widths, default=0)


def _open(request: ImportRequest, chat: ChatFormat | None, num_logprobs: int) -> TeacherStore:
    if (request.store / "store.json").exists():
        # A later file may hold more or fewer logprobs: the store goes on with the number it began with.
        num_logprobs = load_store(request.store).identity.num_logprobs
    identity = StoreIdentity(
        teacher=request.teacher,
        engine=f"imported:{request.format}",
        dtype="unknown",
        tokenizer_sha256="" if chat is None else tokenizer_sha256(chat.tokenizer),
        chat_template_sha256="" if chat is None else chat_template_sha256(chat.tokenizer) or "",
        num_logprobs=num_logprobs,
        licence_note=request.licence_note,
    )
    return open_store(request.store, identity, request.num_partitions)


def _check_options(request: ImportRequest) -> None:
    if not request.files:
        raise ConfigError("no file is given", where="FILE", fix="name the files to import")
    if request.format == "openai-batch" and not request.inputs:
        raise ConfigError(
            "a batch's output has no prompts: its input file is needed too",
            where="--input",
            fix="add --input requests.jsonl, the file that was sent",
        )
    if request.format != "openai-batch" and request.inputs:
        raise ConfigError("--input belongs to openai-batch only", where="--input", fix="leave it out")
    if request.format != "distillkit" and request.codec is not None:
        raise ConfigError("--codec belongs to distillkit only", where="--codec", fix="leave it out")
