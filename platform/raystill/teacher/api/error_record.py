"""An error as columns of a progress record, and back: what a worker reports instead of raising it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raystill.errors import ConfigError, DataError, EnvironmentFault, RaystillError, RemoteError

_KINDS: tuple[type[RaystillError], ...] = (ConfigError, DataError, EnvironmentFault, RemoteError)
ERROR_FIELDS = [pa.field(name, pa.string()) for name in ("error", "error_what", "error_where", "error_fix")]


def error_columns(error: RaystillError | None) -> dict[str, list[str | None]]:
    """One row of ERROR_FIELDS; nulls where there is no error."""
    if error is None:
        return {field.name: [None] for field in ERROR_FIELDS}
    problem = error.problems[0]
    kind = next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), RaystillError.__name__)
    values = (kind, problem.what, problem.where, problem.fix)
    return {field.name: [value] for field, value in zip(ERROR_FIELDS, values, strict=True)}


def first_error(records: pa.Table) -> RaystillError | None:
    """The first error among `records`, or None."""
    rows: list[dict[str, Any]] = records.select([field.name for field in ERROR_FIELDS]).to_pylist()
    for row in rows:
        if row["error"] is not None:
            kinds = {kind.__name__: kind for kind in _KINDS}
            kind = kinds.get(row["error"], RaystillError)
            return kind(row["error_what"], row["error_where"], row["error_fix"])
    return None
