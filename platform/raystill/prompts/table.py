"""From rows to the prompt table: dedupe, token counts, length policy, ids, split, an account of every row.

rows_in = kept + duplicates + dropped + rejected, always: `kept` rows are in the table, `duplicates` say
exactly what a kept row says, `dropped` are over-length, `rejected` are bad. The last two are listed with
their reasons.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError, Problem
from raystill.prompts.rows import BadRow, excerpt_of
from raystill.prompts.shapes import RawPrompt
from raystill.prompts.split import compute_splits
from raystill.prompts.token_counter import TokenCounter
from raystill.run.publish import publish_file
from raystill.text.prompt_row import Prompt
from raystill.text.row_sampling import RowSampling

OverLength = Literal["keep", "drop", "error"]

REJECT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False),
    ]
)
OVER_LENGTH = "over_length"
_TOKENISE_ROWS = 1024
_ID_HEX_DIGITS = 24
_SHOWN_ROWS = 5
# Past this many bad rows more than allowed, reading the rest of a wrong file tells the user nothing new.
_BAD_ROWS_READ = 100


@dataclass(frozen=True)
class TableRules:
    """What `prompts` and `teacher.base.prompt_length` say about building the table."""

    system: str | None
    max_bad_rows: int
    prompt_length: int | None
    over_length: OverLength
    split_seed: int
    eval_size: int | None
    eval_fraction: float
    add_generation_prompt: bool = True


@dataclass
class RowAccount:
    """Counts of rows by fate, and the bad rows themselves."""

    max_bad_rows: int
    rows_in: int = 0
    duplicates: int = 0
    over_length: int = 0
    rejects: list[BadRow] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        return sum(row.code == OVER_LENGTH for row in self.rejects)

    @property
    def rejected(self) -> int:
        return len(self.rejects) - self.dropped

    def reject(self, row: BadRow) -> None:
        """Take down a bad row. Raises DataError once there are far too many of them."""
        self.rejects.append(row)
        if self.rejected > self.max_bad_rows + _BAD_ROWS_READ:
            self.check(more=True)

    def check(self, more: bool = False) -> None:
        """Raise DataError, showing the first bad rows, if there are more than `max_bad_rows`."""
        bad = [row for row in self.rejects if row.code != OVER_LENGTH]
        if len(bad) <= self.max_bad_rows:
            return
        count = f"at least {len(bad)}" if more else str(len(bad))
        shown = tuple(Problem(str(row)) for row in bad[:_SHOWN_ROWS])
        total = Problem(
            f"{count} bad rows among {self.rows_in} read; prompts.max_bad_rows allows {self.max_bad_rows}",
            where="prompts.max_bad_rows",
            fix="repair the rows, or raise prompts.max_bad_rows to reject them with their reasons",
        )
        raise DataError(total.what, total.where, total.fix, problems=(*shown, total))


@dataclass(frozen=True)
class PromptTable:
    """The finished table, sorted by id, and the account of its rows."""

    prompts: list[Prompt]
    rejects: list[BadRow]
    counts: dict[str, int]
    metrics: dict[str, Any]

    @property
    def content(self) -> str:
        """Hex sha256 over the rows in canonical form: equal tables have it whatever their files' bytes."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(_canonical(vars(prompt)) + b"\n")
        return digest.hexdigest()


def build_table(
    rows: Iterable[RawPrompt | BadRow], labels: Sequence[str], rules: TableRules, chat: TokenCounter
) -> PromptTable:
    """Build the table from rows of all sources; `labels[i]` tags the rows of source i.

    Raises DataError for too many bad rows, for required ids that are missing or repeated, for over-length
    prompts under `over_length: error`, and if no row is left.
    """
    account = RowAccount(rules.max_bad_rows)
    unique = _dedupe(_with_system(_take_good(rows, account), rules.system), account)
    account.check()
    counted = list(_count_tokens(unique, rules, chat, account))
    account.check()
    kept = _apply_length_policy(counted, rules, chat, account)
    if not kept:
        raise _nothing_left(account)
    ids, without_sound_ids = assign_ids([raw for raw, _ in kept])
    notes = [
        f"{labels[index]}: its column `id` has gaps or repeats, so ids come from content"
        for index in without_sound_ids
    ]
    splits = compute_splits(
        [raw.opening or raw.messages for raw, _ in kept],
        rules.split_seed,
        rules.eval_size,
        rules.eval_fraction,
    )
    prompts = [
        Prompt(
            id=row_id,
            source=labels[raw.source_index],
            split=split,
            messages=raw.messages,
            task=raw.task,
            reference=raw.reference,
            num_tokens=num_tokens,
            sampling=raw.sampling,
        )
        for (raw, num_tokens), row_id, split in zip(kept, ids, splits, strict=True)
    ]
    prompts.sort(key=lambda prompt: prompt.id)
    return PromptTable(prompts, account.rejects, _counts(account, prompts), _metrics(prompts, notes))


def save_rejects(path: Path, rejects: Sequence[BadRow]) -> None:
    """Publish the rows that are not in the table, in reading order, with the reason of each."""
    rows = [
        {"row": _utf8(bad.where), "code": bad.code, "reason": _utf8(bad.reason), "excerpt": bad.excerpt}
        for bad in rejects
    ]
    with publish_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA), temporary, compression="zstd")


def _utf8(text: str) -> str:
    """Text that Parquet can hold, whatever a row or a file name put into it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _take_good(rows: Iterable[RawPrompt | BadRow], account: RowAccount) -> Iterator[RawPrompt]:
    for row in rows:
        account.rows_in += 1
        if isinstance(row, BadRow):
            account.reject(row)
        else:
            yield row


def _with_system(rows: Iterable[RawPrompt], system: str | None) -> Iterator[RawPrompt]:
    for row in rows:
        if system and row.messages[0]["role"] != "system":
            row.messages.insert(0, {"role": "system", "content": system})
        yield row


def _dedupe(rows: Iterable[RawPrompt], account: RowAccount) -> list[RawPrompt]:
    """One row per exact list of messages and sampling; which one does not depend on a source's order."""
    best: dict[bytes, RawPrompt] = {}
    for row in rows:
        key = hashlib.sha256(_identity(row.messages, row.sampling)).digest()
        if key not in best:
            best[key] = row
            continue
        account.duplicates += 1
        best[key] = min(best[key], row, key=_preference)
    return list(best.values())


def _preference(row: RawPrompt) -> tuple[int, bool, bool, str, str, bool, str]:
    """The first source wins; in it, a row that says more, then any fixed order."""
    return (
        row.source_index,
        row.reference is None,
        row.task == "text",
        row.task,
        row.reference or "",
        row.id is None,
        row.id or "",
    )


def _count_tokens(
    rows: Sequence[RawPrompt], rules: TableRules, chat: TokenCounter, account: RowAccount
) -> Iterator[tuple[RawPrompt, int]]:
    for start in range(0, len(rows), _TOKENISE_ROWS):
        rendered: list[tuple[RawPrompt, str]] = []
        for row in rows[start : start + _TOKENISE_ROWS]:
            try:
                rendered.append((row, chat.render_text(row.messages, rules.add_generation_prompt)))
            except DataError as error:
                account.reject(BadRow(row.where, "template", error.what, _excerpt(row)))
        lengths = chat.count_tokens([text for _, text in rendered])
        yield from ((row, length) for (row, _), length in zip(rendered, lengths, strict=True))


def _apply_length_policy(
    counted: list[tuple[RawPrompt, int]], rules: TableRules, chat: TokenCounter, account: RowAccount
) -> list[tuple[RawPrompt, int]]:
    """Keep, drop or refuse prompts whose own text is longer than `prompt_length`."""
    limit = rules.prompt_length
    if limit is None:
        return counted
    lengths = _own_lengths([row for row, _ in counted], rules.system, chat)
    too_long = [(length, row) for (row, _), length in zip(counted, lengths, strict=True) if length > limit]
    account.over_length = len(too_long)
    if not too_long or rules.over_length == "keep":
        return counted
    if rules.over_length == "error":
        longest = sorted(too_long, key=lambda pair: -pair[0])[:3]
        shown = ", ".join(f"{row.where} ({length} tokens)" for length, row in longest)
        raise DataError(
            f"{len(too_long)} prompts are longer than {limit} tokens; the longest: {shown}",
            where="teacher.base.prompt_length",
            fix="raise teacher.base.prompt_length, or set prompts.over_length to keep or drop",
        )
    for length, row in too_long:
        reason = f"{length} tokens; teacher.base.prompt_length is {limit}"
        account.rejects.append(BadRow(row.where, OVER_LENGTH, reason, _excerpt(row)))
    return [pair for pair, length in zip(counted, lengths, strict=True) if length <= limit]


def _own_lengths(rows: Sequence[RawPrompt], system: str | None, chat: TokenCounter) -> list[int]:
    """Tokens of what the rows themselves say, without the template and the configured system message."""
    texts = [
        "\n".join(
            message["content"]
            for message in row.messages
            if not (message["role"] == "system" and message["content"] == system)
        )
        for row in rows
    ]
    return chat.count_tokens(texts)


def assign_ids(rows: Sequence[RawPrompt]) -> tuple[list[str], list[int]]:
    """An id for every row, and the sources whose own `id` column could not be used.

    A configured id column must be complete and unique. An unconfigured column that happens to be called `id`
    is used where it is both; otherwise its whole source gets ids from content. Raises DataError.
    """
    required = [row for row in rows if row.id_is_required]
    _require_ids(required)
    owners = Counter(row.id for row in rows if row.id is not None)
    unsound = {
        row.source_index for row in rows if not row.id_is_required and (row.id is None or owners[row.id] > 1)
    }
    ids = [
        row.id
        if row.id is not None and row.source_index not in unsound
        else content_id(row.messages, row.sampling)
        for row in rows
    ]
    has_ids = {row.source_index for row in rows if row.id is not None}
    return ids, sorted(unsound & has_ids)


def content_id(messages: Sequence[dict[str, str]], sampling: RowSampling | None = None) -> str:
    """The id of a prompt that brings none: a hash of its messages, and of its own sampling if it has some."""
    return hashlib.sha256(_identity(messages, sampling)).hexdigest()[:_ID_HEX_DIGITS]


def _identity(messages: Sequence[dict[str, str]], sampling: RowSampling | None) -> bytes:
    return _canonical(messages if sampling is None else [messages, sampling])


def _require_ids(rows: Sequence[RawPrompt]) -> None:
    missing = [row.where for row in rows if row.id is None]
    by_id: dict[str, list[str]] = {}
    for row in rows:
        if row.id is not None:
            by_id.setdefault(row.id, []).append(row.where)
    repeated = {row_id: places for row_id, places in by_id.items() if len(places) > 1}
    if not missing and not repeated:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} rows have no id ({', '.join(missing[:3])})")
    if repeated:
        shown = "; ".join(f"{row_id!r} at {', '.join(repeated[row_id][:2])}" for row_id in list(repeated)[:3])
        parts.append(f"{len(repeated)} ids are used by different prompts ({shown})")
    raise DataError(
        "; ".join(parts),
        where="prompts.sources[].id_column",
        fix="correct the ids, or remove id_column to derive them from content",
    )


def _counts(account: RowAccount, prompts: Sequence[Prompt]) -> dict[str, int]:
    counts = {
        "rows_in": account.rows_in,
        "kept": len(prompts),
        "duplicates": account.duplicates,
        "dropped": account.dropped,
        "rejected": account.rejected,
        "over_length": account.over_length,
        "train": sum(prompt.split == "train" for prompt in prompts),
        "eval": sum(prompt.split == "eval" for prompt in prompts),
    }
    assert counts["rows_in"] == sum(counts[fate] for fate in ("kept", "duplicates", "dropped", "rejected"))
    return counts


def _metrics(prompts: Sequence[Prompt], notes: list[str]) -> dict[str, Any]:
    lengths = sorted(prompt.num_tokens for prompt in prompts)
    quantiles = {f"p{q}": lengths[min(len(lengths) - 1, len(lengths) * q // 100)] for q in (50, 90, 99)}
    return {
        "prompt_tokens": {**quantiles, "max": lengths[-1], "total": sum(lengths)},
        "sources": dict(sorted(Counter(prompt.source for prompt in prompts).items())),
        "tasks": dict(sorted(Counter(prompt.task for prompt in prompts).items())),
        "notes": notes,
    }


def _nothing_left(account: RowAccount) -> DataError:
    return DataError(
        f"no prompt is left: {account.rows_in} rows read, {account.rejected} rejected, "
        f"{account.duplicates} duplicates, {account.dropped} dropped for their length",
        where="prompts.sources",
        fix="give a source with prompts, or loosen prompts.over_length and teacher.base.prompt_length",
    )


def _excerpt(row: RawPrompt) -> str:
    return excerpt_of(row.messages[-1]["content"])


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
