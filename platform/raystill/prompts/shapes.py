"""How a row says its prompt: five shapes, told apart by their columns, each becoming role/content messages.

    messages     messages: [{role, content}, ...]; a final assistant turn becomes the reference
    prompt       prompt (text); optional reference or completion, system
    instruction  instruction (text, or the configured key); optional reference, system
    alpaca       instruction, input (may be empty); optional output -> reference, system
    sharegpt     conversations: [{from, value}, ...]; a final gpt turn becomes the reference; optional system

Every shape honours the optional columns id, task (text, exact, tool_call), reference and sampling (see
`raystill.text.row_sampling`). Content is kept byte
for byte but for line endings, which become LF: no Unicode normalisation, because an id or a file name in a
prompt means its own bytes. Anything else in a message but role and content (such as a name) is left out;
tool calls and multi-part content are refused, because leaving them out would change the prompt's meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, get_args

from raystill.errors import DataError
from raystill.prompts.rows import BadRow, RawRow, excerpt_of
from raystill.prompts.sources import Shape, Source
from raystill.text.row_sampling import RowSampling, parse_row_sampling
from raystill.text.task_kind import TaskKind

ROLES = ("system", "user", "assistant", "tool")
_TASKS: tuple[TaskKind, ...] = get_args(TaskKind)
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_DEFAULT_COLUMN: dict[Shape, str] = {
    "messages": "messages",
    "prompt": "prompt",
    "instruction": "instruction",
    "alpaca": "instruction",
    "sharegpt": "conversations",
}
_REFERENCE_COLUMNS: dict[Shape, tuple[str, ...]] = {
    "messages": ("reference",),
    "prompt": ("reference", "completion"),
    "instruction": ("reference",),
    "alpaca": ("reference", "output"),
    "sharegpt": ("reference",),
}
_ANSWER_COLUMNS = ("completion", "output", "response")
_DETECTION_ROWS = 100


@dataclass(frozen=True)
class RawPrompt:
    """A valid row. `id` is the row's own, or None; `id_is_required` where the config names its column.

    `opening` decides the split in place of the whole conversation, where others begin like it.
    """

    where: str
    source_index: int
    messages: list[dict[str, str]]
    task: TaskKind
    reference: str | None
    id: str | None
    id_is_required: bool
    sampling: RowSampling | None = None
    opening: list[dict[str, str]] | None = None


@dataclass(frozen=True)
class Layout:
    """The shape of a source's rows and the column that holds the prompt."""

    shape: Shape
    column: str


class _RowError(ValueError):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def iter_prompts(
    source: Source, source_index: int, rows: Iterable[RawRow | BadRow]
) -> Iterator[RawPrompt | BadRow]:
    """Prompts of a source, one result per row.

    Raises DataError if the rows have no known shape, lack a configured column, or mix from/value with
    role/content.
    """
    rows = iter(rows)
    head = list(islice(rows, _DETECTION_ROWS))
    sample = [row for row in head if isinstance(row, RawRow)]
    if not sample:
        yield from (row for row in chain(head, rows) if isinstance(row, BadRow))
        return
    layout = detect_layout(source, sample)
    first_dialect: tuple[str, str] | None = None
    for row in chain(head, rows):
        if isinstance(row, BadRow):
            yield row
            continue
        dialect = _dialect(row.value.get(layout.column))
        if dialect and first_dialect is None:
            first_dialect = (dialect, row.where)
        elif first_dialect and dialect and dialect != first_dialect[0]:
            raise _mixed_dialects(source, first_dialect, (dialect, row.where))
        try:
            yield _parse_row(source, source_index, layout, row)
        except _RowError as problem:
            yield BadRow(row.where, problem.code, str(problem), excerpt_of(row.value.get(layout.column, "")))


def detect_layout(source: Source, sample: list[RawRow]) -> Layout:
    """The shape that the first rows have. Raises DataError saying which columns it has and which it wants."""
    columns = list(dict.fromkeys(name for row in sample for name in row.value))
    if source.id_column and source.id_column not in columns:
        raise _missing_column(source, "id_column", source.id_column, columns)
    if source.key and source.key not in columns:
        raise _missing_column(source, "key", source.key, columns)
    column = source.key or _detect_column(source, columns)
    kind = _dialect(next((row.value[column] for row in sample if row.value.get(column) is not None), None))
    shape = source.shape if source.shape != "auto" else _shape_of_column(column, kind, columns)
    if shape == "alpaca" and "input" not in columns and "output" not in columns:
        raise _missing_column(source, "shape", "input", columns)
    conflict = {"from/value": "sharegpt", "role/content": "messages"}
    if kind in conflict and shape != conflict[kind]:
        raise DataError(
            f"column {column!r} holds {kind} turns, which is not the shape {shape}",
            where=source.config_key,
            fix=f"set `shape: {conflict[kind]}`, or remove `shape`",
        )
    return Layout(shape, column)


def _detect_column(source: Source, columns: list[str]) -> str:
    wanted = list(_DEFAULT_COLUMN.values()) if source.shape == "auto" else [_DEFAULT_COLUMN[source.shape]]
    for candidate in ("messages", "conversations", "prompt", "instruction"):
        if candidate in wanted and candidate in columns:
            return candidate
    raise DataError(
        f"no column says the prompt: have {', '.join(columns) or '(none)'}; "
        f"want {' or '.join(dict.fromkeys(wanted))}",
        where=f"{source.config_key} ({source.path})",
        fix=f"name the column, for example `key: {columns[0] if columns else 'text'}`",
    )


def _shape_of_column(column: str, dialect: str | None, columns: list[str]) -> Shape:
    if dialect == "from/value":
        return "sharegpt"
    if dialect == "role/content" or column == "messages":
        return "messages"
    if column == "conversations":
        return "sharegpt"
    if column == "instruction":
        return "alpaca" if "input" in columns or "output" in columns else "instruction"
    return "prompt"


def _dialect(value: Any) -> str | None:
    """How a list of turns is spelt; None for anything else."""
    turns = value if isinstance(value, list) else []
    keys = {
        key
        for turn in turns
        if isinstance(turn, dict)
        for key, content in turn.items()
        if content is not None
    }
    openai, sharegpt = "role" in keys, "from" in keys
    if openai and sharegpt:
        return "both from/value and role/content"
    if sharegpt:
        return "from/value"
    return "role/content" if openai else None


def _parse_row(source: Source, source_index: int, layout: Layout, row: RawRow) -> RawPrompt:
    value = row.value
    reference: str | None = None
    if source.holds_answers:
        reference = _parse_answer(value)
    if layout.shape in ("messages", "sharegpt"):
        messages = _parse_turns(value.get(layout.column), layout)
        _add_system(messages, value.get("system") if layout.shape == "sharegpt" else None)
        if messages[-1]["role"] == "assistant":
            reference = messages.pop()["content"] if reference is None else reference
    else:
        text = _check_text(value.get(layout.column), layout.column)
        if layout.shape == "alpaca" and value.get("input"):
            text = f"{text}\n\n{_check_text(value['input'], 'input')}"
        messages = [{"role": "user", "content": text}]
        _add_system(messages, value.get("system"))
    _check_order([message["role"] for message in messages])
    if source.holds_answers and reference is None:
        raise _RowError("answer", f"the row has no teacher's answer ({', '.join(_ANSWER_COLUMNS)})")
    for column in () if source.holds_answers else _REFERENCE_COLUMNS[layout.shape]:
        if column != layout.column and value.get(column):
            reference = _check_text(value[column], column)
            break
    return RawPrompt(
        where=row.where,
        source_index=source_index,
        messages=messages,
        task="text" if source.holds_answers else _parse_task(value.get("task"), reference),
        reference=reference,
        id=_parse_id(value.get(source.id_column or "id"), source.id_column),
        id_is_required=source.id_column is not None,
        sampling=_parse_sampling(value.get("sampling"), layout),
    )


def _parse_answer(value: dict[str, Any]) -> str | None:
    """The teacher's completion of a row of a prepared dataset, where a column of its own holds it."""
    for column in _ANSWER_COLUMNS:
        if value.get(column):
            return _check_text(value[column], column)
    return None


def _parse_turns(turns: Any, layout: Layout) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise _RowError("type", f"{layout.column} is not a list of turns")
    return [_parse_turn(turn, index, layout.shape) for index, turn in enumerate(turns)]


def _parse_turn(turn: Any, index: int, shape: Shape) -> dict[str, str]:
    role_key, content_key = ("from", "value") if shape == "sharegpt" else ("role", "content")
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        raise _RowError("type", f"turn {index} is not an object with {role_key} and {content_key}")
    if turn.get("tool_calls") or turn.get("function_call") or turn[role_key] == "function_call":
        raise _RowError("tool_calls", f"turn {index} has tool calls, which are not supported in a prompt")
    role = turn[role_key]
    if shape == "sharegpt" and isinstance(role, str):
        role = _SHAREGPT_ROLES.get(role, role)
    if role not in ROLES:
        raise _RowError("role", f"turn {index} has the unknown role {role!r}; known: {', '.join(ROLES)}")
    if isinstance(turn[content_key], list):
        raise _RowError("content_type", f"turn {index} has a list of content parts; only text is supported")
    return {"role": role, "content": _check_text(turn[content_key], f"turn {index}")}


def _add_system(messages: list[dict[str, str]], system: Any) -> None:
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _check_text(system, "system")})


def _check_order(roles: list[str]) -> None:
    if not roles or roles[-1] != "user":
        last = roles[-1] if roles else "assistant, and nothing stands before it"
        raise _RowError("order", f"the prompt must end with the user's turn; it ends with {last}")
    if "system" in roles[1:]:
        raise _RowError("order", "a system turn may only come first")


def _check_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}"
        raise _RowError("type", f"{name} is {kind} instead of text")
    if not value.strip():
        raise _RowError("empty", f"{name} is empty")
    if "\0" in value:
        raise _RowError("nul", f"{name} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _RowError("surrogate", f"{name} holds a lone surrogate at character {error.start}") from error
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _parse_task(task: Any, reference: str | None) -> TaskKind:
    if task is None or task == "":
        return "text"
    if task not in _TASKS:
        raise _RowError("task", f"unknown task {task!r}; known: {', '.join(_TASKS)}")
    if task != "text" and reference is None:
        raise _RowError("reference", f"task {task} needs a reference to compare with")
    kind: TaskKind = task
    return kind


def _parse_sampling(value: Any, layout: Layout) -> RowSampling | None:
    if layout.column == "sampling":
        return None
    try:
        return parse_row_sampling(value)
    except ValueError as error:
        raise _RowError("sampling", str(error)) from error


def _parse_id(value: Any, id_column: str | None) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        if id_column and value is not None:
            raise _RowError("id", f"{id_column} is a {type(value).__name__}; ids are text or whole numbers")
        return None
    text = str(value)
    if not text.isprintable():
        if id_column:
            raise _RowError("id", f"{id_column} holds unprintable characters")
        return None
    return text.strip() or None


def _missing_column(source: Source, setting: str, wanted: str, columns: list[str]) -> DataError:
    return DataError(
        f"there is no column {wanted!r}: have {', '.join(columns) or '(none)'}; want {wanted}",
        where=f"{source.config_key}.{setting} ({source.path})",
        fix=f"set `{setting}` to what the file has",
    )


def _mixed_dialects(source: Source, first: tuple[str, str], second: tuple[str, str]) -> DataError:
    return DataError(
        f"the rows mix two shapes: {first[1]} has {first[0]}, {second[1]} has {second[0]}",
        where=f"{source.config_key} ({source.path})",
        fix="convert the rows to one of them, or split them into two sources",
    )
