"""`raystill store import|export`: other tools' formats, both ways."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raystill.cli.arguments import Debug, Json
from raystill.cli.terminal import RESULTS, print_json
from raystill.errors import ConfigError

if TYPE_CHECKING:
    from raystill.store.exporters.formats import ExportFormat
    from raystill.store.importers.formats import ImportFormat

Format = Annotated[str, typer.Argument(metavar="FORMAT", help="One of the formats below.")]
StoreDirectory = Annotated[Path, typer.Option("--store", metavar="DIR", help="The teacher store.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", metavar="DIR", help="The teacher's own tokenizer.")
]


def import_answers(
    format: Format,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSONL or Parquet files.")],
    store: StoreDirectory,
    teacher: Annotated[str, typer.Option("--teacher", help="Who gave the answers; names the store.")],
    tokenizer: Tokenizer = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", metavar="FILE", help="openai-batch: the requests. Repeatable."),
    ] = None,
    codec: Annotated[
        Path | None,
        typer.Option("--codec", metavar="YAML", help="distillkit: unset is the file beside the data."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or eval, where a row names none.")] = "train",
    partitions: Annotated[int, typer.Option("--partitions", min=1, max=4096, help="Of a new store.")] = 8,
    licence_note: Annotated[str, typer.Option("--licence", help="Kept with a new store.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Add answers from elsewhere: openai-batch, distillkit, axolotl or messages. Twice adds nothing."""
    from raystill.store.importers.formats import IMPORT_FORMATS, ImportRequest, import_files

    if split not in ("train", "eval"):
        raise ConfigError(f"the split {split!r} is unknown", where="--split", fix="use train or eval")
    chosen: ImportFormat = _chosen(format, IMPORT_FORMATS)
    request = ImportRequest(
        chosen, tuple(files), store, teacher, tokenizer, tuple(inputs or ()), codec, split, partitions,
        licence_note,
    )  # fmt: skip
    opened, counts = import_files(request)
    if as_json:
        print_json({"store": str(store), "teacher_id": opened.identity.teacher_id} | asdict(counts))
        return
    codes = ", ".join(f"{code} {number:,}" for code, number in sorted(counts.rejects_by_code.items()))
    RESULTS.print(
        f"{counts.num_read:,} rows read: {counts.num_added:,} added ({counts.num_signals:,} with logprobs), "
        f"{counts.num_known:,} known already, {counts.num_rejected:,} rejected"
        + (f" ({codes})" if codes else ""),
        markup=False,
    )


def export_answers(
    format: Format,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File; for distillkit a directory.")],
    store: StoreDirectory,
    tokenizer: Tokenizer = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=1, help="distillkit: unset is the largest id plus one.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a store as jsonl, openai-batch, messages (Parquet), distillkit or axolotl."""
    from raystill.store.exporters.formats import EXPORT_FORMATS, export_store
    from raystill.store.store import load_store

    chosen: ExportFormat = _chosen(format, EXPORT_FORMATS)
    done = export_store(load_store(store), chosen, output, tokenizer=tokenizer, vocab_size=vocab_size)
    if as_json:
        print_json({"output": str(output)} | asdict(done))
        return
    RESULTS.print(f"{done.num_rows:,} rows written to {output}", markup=False)
    if (loss := done.codec_loss) is not None:
        RESULTS.print(
            f"the codec's error: KL {loss.kl_mean:.2e} nats per token on average, {loss.kl_max:.2e} at most; "
            f"{loss.bytes_per_token:.1f} bytes per token",
            markup=False,
        )


def _chosen(name: str, formats: tuple[Any, ...]) -> Any:
    if name not in formats:
        raise ConfigError(
            f"the format {name!r} is unknown", where="FORMAT", fix=f"use one of {', '.join(formats)}"
        )
    return name
