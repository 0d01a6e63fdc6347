"""Prompt sources of a configuration: where each one is, how it is read, and what identifies its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from raystill.config.prepared import find_prepared
from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError
from raystill.prompts.hf_dataset import (
    is_saved_dataset,
    iter_hub_dataset,
    iter_saved_dataset,
    list_saved_files,
)
from raystill.prompts.jsonl import iter_jsonl
from raystill.prompts.python_source import iter_python_source, list_python_files, source_root
from raystill.prompts.rows import BadRow, RawRow
from raystill.run.publish import sha256_file

FileFormat = Literal["jsonl", "parquet", "csv"]
SourceFormat = Literal["auto", "jsonl", "parquet", "csv", "hf", "python_source", "hub"]
Shape = Literal["auto", "messages", "prompt", "instruction", "alpaca", "sharegpt"]

_SUFFIXES: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
}
_HF_METADATA = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}


@dataclass(frozen=True)
class Source:
    """One source. `config_key` is its place in the configuration, `label` the tag of its rows in the table.

    `path` is as configured (for `hub`: the hub name). `key`, `id_column` and `limit` as in `prompts.sources`.
    `holds_answers` marks a prepared teacher dataset: every row brings the teacher's completion.
    """

    config_key: str
    label: str
    path: str
    format: SourceFormat
    shape: Shape
    key: str | None = None
    id_column: str | None = None
    limit: int | None = None
    subset: str = "default"
    revision: str | None = None
    holds_answers: bool = False

    @property
    def location(self) -> Path:
        """The file or directory that `path` (and `subset`, for a local dataset) means."""
        if self.format == "python_source":
            return source_root(self.path)
        base = Path(self.path).expanduser()
        return base if self.subset == "default" else base / self.subset


def list_sources(config: Config) -> list[Source]:
    """The sources of `datasets`, then those of `prompts.sources`; a prepared dataset takes the place of both.

    Raises ConfigError if there are none.
    """
    prepared = prepared_source(config)
    if prepared is not None:
        return [prepared]
    sources = [
        Source(
            config_key=f"datasets[{index}]",
            label=dataset.name,
            path=dataset.external_local_path or dataset.name,
            format="auto" if dataset.external_local_path else "hub",
            shape="instruction",
            key=dataset.key,
            subset=dataset.subset,
        )
        for index, dataset in enumerate(config.datasets)
    ]
    sources += [
        Source(
            config_key=f"prompts.sources[{index}]",
            label=source.path,
            path=source.path,
            format=source.format,
            shape=source.shape,
            key=source.key,
            id_column=source.id_column,
            limit=source.limit,
        )
        for index, source in enumerate(config.prompts.sources)
    ]
    if not sources:
        raise ConfigError(
            "there is nothing to prepare: `datasets` and `prompts.sources` are both empty",
            where="prompts.sources",
            fix="prompts: {sources: [{path: my_prompts.jsonl}]}",
        )
    return sources


def prepared_source(config: Config) -> Source | None:
    """What `teacher.*.data.download` names, None where nothing is downloaded."""
    prepared = find_prepared(config.teacher)
    if prepared is None:
        return None
    return Source(
        config_key=prepared.config_key,
        label=prepared.label,
        path=prepared.path or prepared.name,
        format="auto" if prepared.path else "hub",
        shape="auto",
        revision=prepared.revision or None,
        holds_answers=True,
    )


def check_source(source: Source, output: Path) -> None:
    """Raise what can be known without reading a row: a malformed, missing or empty path, or the wrong kind.

    ConfigError for a malformed path, keys that its format can't honour, and a run directory inside a source
    directory; DataError for the rest.
    """
    if "\0" in source.path:
        raise ConfigError(
            f"the path holds a NUL character: {source.path!r}", source.config_key, fix="remove it"
        )
    if source.format == "hub":
        return
    if source.format == "python_source" and (source.key or source.id_column or source.shape != "auto"):
        raise ConfigError(
            "python_source builds its own prompts: shape, key and id_column mean nothing to it",
            where=source.config_key,
            fix="remove them",
        )
    location = source.location
    if not _exists(location):
        raise DataError(
            f"{location} does not exist",
            where=f"{source.config_key} (relative paths start at {Path.cwd()})",
            fix="correct the path",
        )
    if location.is_dir() and output.resolve().is_relative_to(location.resolve()):
        raise ConfigError(
            f"the run directory {output} lies inside this source: its output would become its input",
            where=source.config_key,
            fix="set run.dir to a directory outside the source",
        )
    for file in list_files(source):
        if file.stat().st_size == 0 and source.format != "python_source":
            raise DataError(f"{file} is empty", where=source.config_key, fix="give a file with prompts")


def list_files(source: Source) -> list[Path]:
    """Every file that a local source's rows come from, in row order.

    Raises DataError if the path is of another kind than the format says, or holds no data files.
    """
    location = source.location
    kind = resolve_format(source)
    if kind == "python_source":
        return _require(list_python_files(location), source, "Python files") if location.is_dir() else []
    if location.is_file():
        return [location]
    if is_saved_dataset(location):
        return _require(list_saved_files(location), source, "Arrow files")
    if kind == "hf":
        suffixes = sorted(_SUFFIXES)
    else:
        suffixes = [suffix for suffix, found in _SUFFIXES.items() if found == kind]
    files = [
        path
        for path in location.rglob("*")
        if path.suffix in suffixes
        and path.name not in _HF_METADATA
        and not any(part.startswith(".") for part in path.relative_to(location).parts)
        and path.is_file()
        and path.resolve().is_relative_to(location.resolve())
    ]
    return _require(sorted(files), source, f"{', '.join(suffixes)} files")


def resolve_format(source: Source) -> SourceFormat:
    """The format that `auto` means for this path. Raises DataError where format and path contradict."""
    location = source.location
    if source.format == "hub":
        return source.format
    if location.is_dir():
        if source.format in ("jsonl", "csv", "parquet"):
            raise DataError(
                f"{location} is a directory, and format {source.format} wants a file",
                where=source.config_key,
                fix="give the file's path, or `format: hf` for a directory of data files",
            )
        return "hf" if source.format == "auto" else source.format
    if source.format in ("hf", "python_source"):
        raise DataError(
            f"{location} is a file, and format {source.format} wants a directory",
            where=source.config_key,
            fix="give the directory's path, or remove `format`",
        )
    if source.format != "auto":
        return source.format
    if location.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"the name of {location} doesn't tell its format",
            where=source.config_key,
            fix="set `format` to jsonl, parquet or csv",
        )
    return _SUFFIXES[location.suffix.lower()]


def iter_rows(source: Source) -> Iterator[RawRow | BadRow]:
    """Rows of a source in order, at most `limit`. Raises DataError for files that can't be read at all."""
    return islice(_iter_all_rows(source), source.limit)


def _iter_all_rows(source: Source) -> Iterator[RawRow | BadRow]:
    kind = resolve_format(source)
    if kind == "hub":
        hint = f"set {source.config_key}.path" if source.holds_answers else "set external_local_path"
        yield from iter_hub_dataset(source.path, source.subset, source.revision, f"{hint} to a local copy")
    elif kind == "python_source":
        yield from iter_python_source(source.location)
    elif kind == "hf" and is_saved_dataset(source.location):
        yield from iter_saved_dataset(source.location)
    elif kind == "hf":
        for file in list_files(source):
            yield from _iter_file(file, _SUFFIXES[file.suffix.lower()])
    else:
        yield from _iter_file(source.location, kind)


def _iter_file(path: Path, kind: SourceFormat) -> Iterator[RawRow | BadRow]:
    if kind not in ("csv", "parquet"):
        return iter_jsonl(path)
    from raystill.prompts.columnar import iter_csv, iter_parquet  # a plan of other files needs no Arrow

    return iter_parquet(path) if kind == "parquet" else iter_csv(path)


def fingerprint_sources(config: Config) -> dict[str, str]:
    """Hex sha256 of every local source's content by configured path; missing sources are left out."""
    fingerprints: dict[str, str] = {}
    for source in list_sources(config):
        if source.format == "hub" or "\0" in source.path or not _exists(source.location):
            continue
        location = source.location
        digest = hashlib.sha256()
        for file in list_files(source):
            name = file.relative_to(location).as_posix() if location.is_dir() else ""
            digest.update(f"{name}\0{sha256_file(file)}\n".encode("utf-8", "surrogateescape"))
        name = source.path if source.subset == "default" else f"{source.path}/{source.subset}"
        fingerprints[name] = digest.hexdigest()
    return fingerprints


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _require(files: list[Path], source: Source, what: str) -> list[Path]:
    if files:
        return files
    hint = " (for Python files: `format: python_source`)" if any(source.location.rglob("*.py")) else ""
    raise DataError(
        f"{source.location} holds no {what}",
        where=source.config_key,
        fix=f"correct the path or the format{hint}",
    )
