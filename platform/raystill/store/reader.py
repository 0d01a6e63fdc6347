"""Reading a store. Only committed parts are seen, every part is verified when it is read, nothing is written.

Where two writers raced and committed the same key, the older part (the first by name) counts; of several
scores of one row, the widest. Every reader, `compute_stats` and `content_digest` decide alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.run.remote import is_remote, object_sizes, remote_faults
from raystill.store.codec import (
    DECODED_COLUMNS,
    SIGNAL_COLUMNS,
    empty_signal,
    iter_table_rows,
    list_arrays,
    list_scores,
    list_signals,
    list_values,
    stored_schema,
    view_signal,
)
from raystill.store.commit import kept_rows, load_commits
from raystill.store.commit_record import CommitRecord
from raystill.store.keys import KeySet
from raystill.store.layout import Kind
from raystill.store.records import (
    REJECT_SCHEMA,
    RELEASED,
    ROW_SCHEMA,
    SCORE_SCHEMA,
    Int32Array,
    Score,
    ScoredIds,
    TeacherRow,
    TopKSignal,
)
from raystill.store.selfcheck import check_sampled
from raystill.store.store import TeacherStore
from raystill.store.tier_records import TIER_SCHEMAS

SCHEMAS: dict[Kind, pa.Schema] = {
    "rows": ROW_SCHEMA,
    "scores": SCORE_SCHEMA,
    "sampled": TIER_SCHEMAS["sampled"],
    "hidden": TIER_SCHEMAS["hidden"],
    "rejects": REJECT_SCHEMA,
}
_STORED_TYPES = {kind: stored_schema(schema).types for kind, schema in SCHEMAS.items()}


def committed_keys(store: TeacherStore, partition: int, kind: Kind = "rows") -> set[str]:
    """Keys of one partition that are stored, as text. Opens no Parquet file. Raises like `stored_keys`."""
    return {key for commit in _present_commits(store, partition, kind) for key in commit.keys}


def stored_keys(store: TeacherStore, partition: int, kind: Kind = "rows") -> KeySet:
    """Keys of one partition that are stored: what need not be asked again. Opens no Parquet file.

    16 bytes per key. Raises DataError where a committed part is missing or has another size.
    """
    return KeySet.from_packed([commit.packed_keys for commit in _present_commits(store, partition, kind)])


def keys_to_score(store: TeacherStore, partition: int, num_logprobs: int) -> set[str]:
    """Keys of stored rows whose best signal has fewer than `num_logprobs` logprobs, or that have none.

    Rows that are known as text alone are to be scored too; empty completions have nothing to score.
    """
    columns = ("key", "num_logprobs", "num_completion_tokens")
    pending: set[str] = set()
    without_ids: set[str] = set()
    for table in iter_tables(store, columns=columns, partitions=(partition,)):
        for key, width, tokens in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
            if width is None or width < num_logprobs:
                (pending if tokens else without_ids).add(key)
    if without_ids:
        texts = ("key", "completion", "tool_calls")
        for table in iter_tables(store, columns=texts, keys=without_ids, partitions=(partition,)):
            pending.update(row["key"] for row in table.to_pylist() if row["completion"] or row["tool_calls"])
    for commit in load_commits(store, partition, "scores"):
        if commit.num_logprobs is not None and commit.num_logprobs >= num_logprobs:
            check_present(store, commit)
            pending.difference_update(commit.keys)
    return pending


def unscored_keys(store: TeacherStore, partition: int) -> set[str]:
    """Keys that the score stage rejected and that nothing has scored since: rows that will have no signal."""
    rejected = {
        key
        for table in iter_tables(store, kind="rejects", columns=("key", "stage"), partitions=(partition,))
        for key, stage in zip(table.column("key").to_pylist(), table.column("stage").to_pylist(), strict=True)
        if stage == "score"
    }
    return rejected and rejected & keys_to_score(store, partition, num_logprobs=1)


def iter_tables(
    store: TeacherStore,
    *,
    kind: Kind = "rows",
    columns: Collection[str] | None = None,
    keys: Collection[str] | None = None,
    partitions: Iterable[int] | None = None,
) -> Iterator[pa.Table]:
    """One table per committed part, duplicates and other keys left out; order: partition, part name, row.

    `columns` and `keys` None mean all. Of the rejects of one key the newest counts; those that were released
    for another attempt are left out. Raises DataError naming a missing or damaged part.
    """
    wanted = list(SCHEMAS[kind].names if columns is None else columns)
    needed = wanted if keys is None or "key" in wanted else [*wanted, "key"]
    if kind == "rejects" and "code" not in needed:
        needed = [*needed, "code"]
    wanted_keys = None if keys is None else pa.array(sorted(keys), pa.string())
    for partition in range(store.num_partitions) if partitions is None else partitions:
        commits = load_commits(store, partition, kind)
        for commit, kept in zip(commits, kept_rows(commits), strict=True):
            if kept is not None and len(kept) == 0:
                continue
            table = read_part(store, commit, needed)
            if kept is not None:
                table = table.take(pa.array(kept, pa.int64()))
            if kind == "rejects":
                table = table.filter(pc.not_equal(table.column("code"), RELEASED))
            if wanted_keys is not None:
                table = table.filter(pc.is_in(table.column("key"), wanted_keys))
            if table.num_rows:
                yield table.select(wanted)


def iter_rows(
    store: TeacherStore,
    *,
    keys: Collection[str] | None = None,
    partitions: Iterable[int] | None = None,
    with_signal: bool = False,
    num_logprobs: int | None = None,
) -> Iterator[TeacherRow]:
    """Stored rows, one partition's scores in memory at a time. Arrays are read-only views.

    With `with_signal` every row has one: its own or the score stage's, whichever holds more logprobs, cut to
    `num_logprobs` (the dropped mass joins the tail); its ids are those that the signal belongs to, which are
    the scorer's where the row was text; rows that the score stage rejected are left out. Raises
    DataError for a missing or damaged part, for rows that are still to be scored, and where more logprobs
    are asked for than are stored.
    """
    columns = (*DECODED_COLUMNS, *SIGNAL_COLUMNS) if with_signal else DECODED_COLUMNS
    for partition in range(store.num_partitions) if partitions is None else partitions:
        scores = _load_scores(store, partition) if with_signal else {}
        unscored = unscored_keys(store, partition) if with_signal else set()
        for table in iter_tables(store, columns=columns, keys=keys, partitions=(partition,)):
            if unscored:
                names = pa.array(sorted(unscored), pa.string())
                table = table.filter(pc.invert(pc.is_in(table.column("key"), names)))
            if not with_signal:
                yield from iter_table_rows(table)
                continue
            signals, ids = _table_signals(table, scores, num_logprobs, store.identity.num_logprobs)
            rows = iter_table_rows(table, signals)
            if ids:
                rows = (replace(row, **vars(ids[row.key])) if row.key in ids else row for row in rows)
            yield from rows


def load_rows(
    store: TeacherStore,
    *,
    keys: Collection[str] | None = None,
    with_signal: bool = False,
    num_logprobs: int | None = None,
) -> list[TeacherRow]:
    """All rows of `keys` in memory, sorted by key: the order does not depend on who wrote them when."""
    rows = iter_rows(store, keys=keys, with_signal=with_signal, num_logprobs=num_logprobs)
    return sorted(rows, key=lambda row: row.key)


def read_part(store: TeacherStore, commit: CommitRecord, columns: Collection[str] | None = None) -> pa.Table:
    """A committed part, verified against its checksum. Raises DataError where it is missing or damaged.

    A part that a repack has deleted since its commit was read is read from the part that took its place.
    """
    try:
        raw = _read_raw(store, commit)
    except (DataError, FileNotFoundError):
        table = _read_replacement(store, commit, columns)
        if table is None:
            raise
        return table
    if hashlib.sha256(raw).hexdigest() != commit.sha256:
        raise damaged_part(store, commit, "its content has changed since it was committed")
    with pq.ParquetFile(pa.BufferReader(raw)) as part:
        schema, expected = part.schema_arrow, SCHEMAS[commit.kind]
        if schema.names != expected.names or schema.types not in (expected.types, _STORED_TYPES[commit.kind]):
            raise damaged_part(store, commit, "its columns are not those of this format")
        table = part.read(columns=None if columns is None else list(columns), use_threads=False)
        return table.cast(pa.schema([expected.field(name) for name in table.column_names]))


def _read_replacement(
    store: TeacherStore, commit: CommitRecord, columns: Collection[str] | None
) -> pa.Table | None:
    for newer in load_commits(store, commit.partition, commit.kind):
        if commit.stem in newer.retires:
            names = None if columns is None else [*columns, "key"]
            table = read_part(store, newer, names)
            rows = pc.index_in(pa.array(commit.keys, pa.string()), table.column("key").combine_chunks())
            return table.take(rows).select(table.column_names if columns is None else list(columns))
    return None


def _read_raw(store: TeacherStore, commit: CommitRecord) -> bytes:
    path = commit.part_path(store)
    if not is_remote(path):
        check_present(store, commit)
        return path.read_bytes()
    try:
        with remote_faults(path):
            return path.read_bytes()
    except FileNotFoundError as error:
        raise damaged_part(store, commit, "it is missing") from error


def check_present(store: TeacherStore, commit: CommitRecord) -> None:
    """Raises DataError where a committed part is missing or has another size."""
    path = commit.part_path(store)
    try:
        with remote_faults(path):
            size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise damaged_part(store, commit, "it is missing") from error
    _check_size(store, commit, size_bytes)


def _check_size(store: TeacherStore, commit: CommitRecord, size_bytes: int) -> None:
    if size_bytes != commit.size_bytes:
        raise damaged_part(store, commit, f"it has {size_bytes:,} bytes instead of {commit.size_bytes:,}")


def damaged_part(store: TeacherStore, commit: CommitRecord, why: str) -> DataError:
    """The error for a part that can't be used: which, why, and how many keys it costs."""
    stage = "generate" if commit.kind in ("rows", "rejects") else "score"
    return DataError(
        f"a committed part of the teacher store can't be read: {why}; {commit.num_rows} keys must be asked "
        f"again ({', '.join(commit.keys[:3])}{', ...' if commit.num_rows > 3 else ''})",
        where=str(commit.part_path(store)),
        fix="restore the file from a copy, or set damage aside with `raystill store verify --quarantine` and "
        f"run `raystill {stage} --fresh`: only what is lost is asked again",
    )


def _present_commits(store: TeacherStore, partition: int, kind: Kind) -> list[CommitRecord]:
    commits = load_commits(store, partition, kind)
    folder = store.layout.parts(kind, partition)
    if not is_remote(folder):
        for commit in commits:
            check_present(store, commit)
        return commits
    sizes = object_sizes(folder) if commits else {}  # one request for all of them
    for commit in commits:
        name = commit.part_path(store).name
        if name not in sizes:
            raise damaged_part(store, commit, "it is missing")
        _check_size(store, commit, sizes[name])
    return commits


def _load_scores(store: TeacherStore, partition: int) -> dict[str, Score]:
    return {
        score.key: score
        for table in iter_tables(store, kind="scores", partitions=(partition,))
        for score in list_scores(table)
    }


def _table_signals(
    table: pa.Table, scores: dict[str, Score], num_logprobs: int | None, usual_width: int
) -> tuple[list[TopKSignal], dict[str, ScoredIds]]:
    """One signal per row: its own or the score stage's, whichever is wider, cut to `num_logprobs`.

    And by key the ids that signals of other tokens than the row's belong to. An empty completion needs no
    signal and gets an empty one.
    """
    signals = list_signals(table)
    present = [signal for signal in signals if signal is not None]
    if not scores and len(present) == len(signals):
        return [_cut(signal, num_logprobs) for signal in present], {}
    keys, is_empty = list_values(table, "key"), _is_empty(table)
    scored: list[tuple[str, TopKSignal, Int32Array | None]] = []
    scored_ids: dict[str, ScoredIds] = {}
    for index, ids in enumerate(list_arrays(table, "completion_token_ids")):
        score, own = scores.get(keys[index]), signals[index]
        if score is not None and (own is None or score.signal.num_logprobs > own.num_logprobs):
            signals[index] = score.signal
            if score.ids is not None:
                scored_ids[score.key] = score.ids
                ids = score.ids.completion_token_ids
            scored.append((score.key, score.signal, ids))
        elif own is None and is_empty[index]:
            signals[index] = empty_signal(usual_width if num_logprobs is None else num_logprobs)
    check_sampled(scored)  # a score of another completion under the same key is refused
    present = [signal for signal in signals if signal is not None]
    if len(present) < len(signals):
        missing = [key for key, signal in zip(keys, signals, strict=True) if signal is None]
        raise DataError(
            f"{len(missing)} stored rows have no teacher signal ({', '.join(missing[:3])})",
            where=f"partition of key {missing[0]}",
            fix="set teacher.signals.num_logprobs and run raystill score",
        )
    return [_cut(signal, num_logprobs) for signal in present], scored_ids


def _cut(signal: TopKSignal, num_logprobs: int | None) -> TopKSignal:
    return signal if num_logprobs is None else view_signal(signal, num_logprobs)


def _is_empty(table: pa.Table) -> list[bool]:
    """Which completions have neither tokens nor text nor calls."""
    lengths = map(len, list_arrays(table, "completion_token_ids"))
    texts = (list_values(table, name) for name in ("completion", "tool_calls"))
    return [not any(facts) for facts in zip(lengths, *texts, strict=True)]
