"""HF datasets: directories of `save_to_disk`, plain folders of data files, and names on the hub.

Directories are read with pyarrow alone; only hub names need the `datasets` package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raystill.errors import ConfigError, DataError, EnvironmentFault, RemoteError
from raystill.prompts.rows import BadRow, RawRow

_STATE, _DICT = "state.json", "dataset_dict.json"
_PREFERRED_SPLIT = "train"


def is_saved_dataset(directory: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this directory."""
    return (directory / _STATE).is_file() or (directory / _DICT).is_file()


def list_saved_files(directory: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in row order; of a DatasetDict, those of its split `train`.

    Raises DataError if the index is unreadable, names a missing file or one outside the directory, or if a
    DatasetDict has several splits and none is `train`.
    """
    if (directory / _DICT).is_file():
        splits = [str(name) for name in _read_index(directory / _DICT, "splits")]
        directory = _inside(directory, choose_split(splits, str(directory)))
    files = []
    for entry in _read_index(directory / _STATE, "_data_files"):
        name = entry.get("filename") if isinstance(entry, dict) else None
        files.append(_inside(directory, str(name)))
    return files


def choose_split(splits: list[str], where: str) -> str:
    """`train`, or the only split. Raises DataError elsewhere: a test split must not be trained on unasked."""
    if _PREFERRED_SPLIT in splits:
        return _PREFERRED_SPLIT
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"the dataset has the splits {', '.join(splits) or '(none)'}, and none is {_PREFERRED_SPLIT}",
        where=where,
        fix="give the path of one split's directory",
    )


def iter_saved_dataset(directory: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a saved dataset. Raises what `list_saved_files` raises."""
    from raystill.prompts.columnar import iter_arrow_stream

    for path in list_saved_files(directory):
        yield from iter_arrow_stream(path)


def iter_hub_dataset(
    name: str, subset: str, revision: str | None = None, local_hint: str = "set external_local_path"
) -> Iterator[RawRow | BadRow]:
    """Rows of a dataset on the hub. `local_hint` tells how to use a local copy instead.

    Raises EnvironmentFault without the `datasets` package, RemoteError if the hub can't deliver the dataset,
    ConfigError if it has no such subset.
    """
    dataset = _load_from_hub(name, subset, revision, local_hint)
    for index, row in enumerate(dataset):
        yield RawRow(f"{name}[{index}]", dict(row))


def _load_from_hub(name: str, subset: str, revision: str | None, local_hint: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentFault(
            f"reading {name} from the hub needs the package `datasets`",
            where="datasets",
            fix=f"pip install 'raystill[hub-data]', or {local_hint}",
        ) from error
    where = f"datasets: {name} (subset {subset}{f', revision {revision}' if revision else ''})"
    try:
        loaded = datasets.load_dataset(name, subset, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, OSError) as error:
        raise RemoteError(
            f"the hub did not deliver the dataset: {_first_line(error)}",
            where,
            fix=f"check name and network (`hf auth login` for a gated one), or {local_hint}",
        ) from error
    except ValueError as error:
        raise ConfigError(_first_line(error), where, fix="choose one of the dataset's subsets") from error
    return loaded[choose_split(list(loaded), where)]


def _read_index(path: Path, key: str) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.name} has no list {key}", where=str(path), fix="save the dataset again"
        ) from error
    if not isinstance(entries, list):
        raise DataError(f"{path.name}: {key} is no list", where=str(path), fix="save the dataset again")
    return entries


def _inside(directory: Path, name: str) -> Path:
    path = directory / name
    if "\0" in name or not path.resolve().is_relative_to(directory.resolve()):
        raise DataError(
            f"the dataset names a file outside its own directory: {name!r}",
            where=str(directory),
            fix="don't use this dataset, or save it again",
        )
    if not path.exists():
        raise DataError(f"{name} is missing", where=str(directory), fix="copy the dataset again")
    return path


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
