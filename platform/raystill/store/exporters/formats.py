"""The formats that a store can be exported to, and the export itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from raystill.errors import ConfigError
from raystill.store.export import export_jsonl
from raystill.store.exporters.axolotl import export_axolotl
from raystill.store.exporters.distillkit import CodecLoss, export_distillkit
from raystill.store.exporters.messages import export_messages
from raystill.store.exporters.openai_batch import export_openai_batch
from raystill.store.store import TeacherStore
from raystill.text.chat import load_chat_format

ExportFormat = Literal["jsonl", "openai-batch", "messages", "distillkit", "axolotl"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)


@dataclass(frozen=True)
class Exported:
    """What was written: rows, and what DistillKit's codec lost where it was used."""

    num_rows: int
    codec_loss: CodecLoss | None = None


def export_store(
    store: TeacherStore,
    format_: ExportFormat,
    path: Path,
    *,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
) -> Exported:
    """Write the whole store to `path` (distillkit: a directory), atomically.

    `tokenizer` matters to axolotl, `vocab_size` to distillkit. Raises ConfigError where an option doesn't
    belong to the format, and what the exporter raises.
    """
    if tokenizer is not None and format_ != "axolotl":
        raise ConfigError("--tokenizer belongs to axolotl only", where="--tokenizer", fix="leave it out")
    if vocab_size is not None and format_ != "distillkit":
        raise ConfigError("--vocab-size belongs to distillkit only", where="--vocab-size", fix="leave it out")
    match format_:
        case "jsonl":
            return Exported(export_jsonl(store, path))
        case "openai-batch":
            return Exported(export_openai_batch(store, path))
        case "messages":
            return Exported(export_messages(store, path))
        case "axolotl":
            chat = None if tokenizer is None else load_chat_format(tokenizer)
            return Exported(export_axolotl(store, path, chat))
        case "distillkit":
            loss = export_distillkit(store, path, vocab_size=vocab_size)
            return Exported(loss.num_rows, loss)
