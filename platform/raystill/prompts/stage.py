"""Stage prepare: every prompt source of a configuration becomes the run's prompt table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raystill.config.schema import Config
from raystill.errors import ConfigError, RaystillError
from raystill.run.paths import RunPaths
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raystill.prompts.rows import BadRow
    from raystill.prompts.shapes import RawPrompt
    from raystill.prompts.table import PromptTable
    from raystill.text.chat import ChatFormat

_TOOL_SCHEMA = "tool schema"
_TOKENIZER = "teacher tokenizer"


def run_prepare(context: StageContext) -> StageResult:
    """Read all sources, build the table, publish it and the rejects.

    Raises DataError for bad rows, ids or lengths, and what loading the teacher's tokenizer raises.
    """
    from raystill.prompts.table import save_rejects
    from raystill.text.prompt_table import save_prompts

    table, note = _build(context.config, context.paths)
    if note is not None:
        context.events.emit("note", message=note)
    save_rejects(context.paths.prompt_rejects, table.rejects)
    save_prompts(context.paths.prompt_table, table.prompts)
    return StageResult(
        counts=table.counts,
        metrics=table.metrics,
        files=[context.paths.prompt_table, context.paths.prompt_rejects],
        content={"rows": table.content},
    )


def describe_new_prompts(config: Config, paths: RunPaths) -> list[str]:
    """What the sources as they are now would change in the run's prompt table, in lines for the user."""
    from raystill.prompts.changes import describe_changes
    from raystill.text.prompt_table import load_prompts

    if not paths.prompt_table.is_file():
        return []
    try:
        return describe_changes(load_prompts(paths.prompt_table), _build(config, paths)[0].prompts)
    except RaystillError as error:
        return [f"and the sources can't be read as they are: {error.what}"]


def _build(config: Config, paths: RunPaths) -> tuple[PromptTable, str | None]:
    """The table of all sources, and what the user should hear about how it was counted."""
    from raystill.prompts.table import TableRules, build_table
    from raystill.prompts.token_counter import ByteEstimate

    chat, note = _load_counter(config), None
    if chat is None:
        known = "teacher.open" if config.teacher.closed is None else "teacher.closed.model.tokenizer"
        note = f"prompt lengths are estimated from bytes; {known} would count them"
    rows, labels = _open_sources(config, paths)
    rules = TableRules(
        system=config.prompts.system,
        max_bad_rows=config.prompts.max_bad_rows,
        prompt_length=config.teacher.base.prompt_length,
        over_length=config.prompts.over_length,
        split_seed=config.prompts.split_seed,
        eval_size=config.prompts.eval_size,
        eval_fraction=config.prompts.eval_fraction,
        add_generation_prompt=config.teacher.open is None
        or config.teacher.open.tokenizer.add_generation_prompt,
    )
    return build_table(rows, labels, rules, chat or ByteEstimate()), note


def _open_sources(config: Config, paths: RunPaths) -> tuple[Iterable[RawPrompt | BadRow], list[str]]:
    """Rows of all sources, and what tags those of each."""
    from itertools import chain

    from raystill.prompts.shapes import iter_prompts
    from raystill.prompts.sources import iter_rows, list_sources
    from raystill.prompts.stored import load_stored_prompts, require_answers

    if config.teacher.base.from_store is not None:
        stored = load_stored_prompts(require_answers(paths.store))
        return stored.rows, stored.labels
    sources = list_sources(config)
    rows = chain.from_iterable(
        iter_prompts(source, index, iter_rows(source)) for index, source in enumerate(sources)
    )
    return rows, [source.label for source in sources]


def check_prepare(config: Config, paths: RunPaths) -> None:
    """Raise ConfigError or DataError for what is wrong before any row is read."""
    from raystill.prompts.sources import check_source, list_sources
    from raystill.prompts.stored import require_answers

    if config.teacher.base.from_store is not None:
        require_answers(paths.store)
    else:
        for source in list_sources(config):
            check_source(source, paths.root)
    if config.prompts.over_length != "keep" and config.teacher.base.prompt_length is None:
        raise ConfigError(
            f"prompts.over_length: {config.prompts.over_length} has no length to compare with",
            where="teacher.base.prompt_length",
            fix="set teacher.base.prompt_length, or prompts.over_length: keep",
        )


def fingerprint_external(config: Config) -> dict[str, str]:
    """Content hashes of the local sources (or of the store that takes their place) and, for a local teacher,
    of its tokenizer's files.
    """
    import hashlib
    from pathlib import Path

    from raystill.prompts.sources import fingerprint_sources
    from raystill.run.publish import sha256_file
    from raystill.text.tokenizer import TOKENIZER_FILES

    is_stored = config.teacher.base.from_store is not None
    fingerprints = _fingerprint_answers(config) if is_stored else fingerprint_sources(config)
    tool_schema = config.teacher.base.tool_schema
    if tool_schema is not None and Path(tool_schema).expanduser().is_file():
        fingerprints[_TOOL_SCHEMA] = sha256_file(Path(tool_schema).expanduser())
    name = _tokenizer_name(config)
    if name is None:
        return fingerprints
    directory = Path(name).expanduser()
    present = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if present:
        described = "\n".join(f"{name} {sha256_file(directory / name)}" for name in present)
        fingerprints[_TOKENIZER] = hashlib.sha256(described.encode("ascii")).hexdigest()
    return fingerprints


def _fingerprint_answers(config: Config) -> dict[str, str]:
    from raystill.store.content import content_digest
    from raystill.store.store import load_store

    path = RunPaths.from_config(config).store
    exists = (path / "store.json").exists()
    return {"teacher.base.from_store": content_digest(load_store(path))} if exists else {}


def _tokenizer_name(config: Config) -> str | None:
    if config.teacher.closed is not None:
        return config.teacher.closed.model.tokenizer
    return config.teacher.open.model.name if config.teacher.open is not None else None


def _load_counter(config: Config) -> ChatFormat | None:
    """The teacher's chat format, None where its tokenizer is not known.

    Where both are given, the closed teacher answers the prompts.
    """
    from raystill.text.chat import load_chat_format
    from raystill.text.tool_schema import offer_tools

    tools = config.teacher.base.tool_schema
    closed = config.teacher.closed
    if closed is not None:
        tokenizer = closed.model.tokenizer
        return None if tokenizer is None else offer_tools(load_chat_format(tokenizer), tools)
    teacher = config.teacher.open
    if teacher is None and config.teacher.base.from_store is not None:
        return None
    if teacher is None:
        raise ConfigError(
            "there is no teacher: prompts are counted in its tokens",
            where="teacher",
            fix="set teacher.open.model.name or teacher.closed.model.name",
        )
    chat = load_chat_format(
        teacher.model.name,
        revision=teacher.model.revision,
        trust_remote_code=teacher.model.trust_remote_code,
        use_fast=teacher.tokenizer.use_fast,
    )
    return offer_tools(chat, tools)


STAGE = Stage(
    name="prepare",
    config_keys=(
        "datasets",
        "prompts",
        "teacher.base.from_store",
        "teacher.base.prompt_length",
        "teacher.base.tool_schema",
        "teacher.open.data.download",
        "teacher.closed.data.download",
        "teacher.open.model.name",
        "teacher.open.model.revision",
        "teacher.open.model.trust_remote_code",
        "teacher.open.tokenizer.add_generation_prompt",
        "teacher.open.tokenizer.use_fast",
        "teacher.closed.model.tokenizer",
    ),
    inputs=lambda config: (),
    body=run_prepare,
    external_inputs=fingerprint_external,
    preflight=check_prepare,
    grows=True,
    fixed_inputs=(_TOOL_SCHEMA, _TOKENIZER),
    describe_new_data=describe_new_prompts,
)
