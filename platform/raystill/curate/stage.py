"""The stage curate: of the teacher's outputs, those that a student trains on, and why not the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raystill.config.curate import CurateSection
from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from raystill.curate.candidate import Check
    from raystill.curate.inspect_rows import Inspection
    from raystill.curate.select import Curated, Pairs
    from raystill.store.store import TeacherStore

_CONFIG_KEYS = ("curate", "teacher.base.tool_schema", "teacher.store.path")


def run_curate(context: StageContext) -> StageResult:
    """Look at every stored row of the run, drop what the filters say, and write the selection.

    Raises DataError where a filter's file can't be used, or where nothing is left to train on.
    """
    from raystill.curate.facts import load_facts
    from raystill.curate.inspect_rows import inspect_partition
    from raystill.curate.select import curate, describe
    from raystill.run.publish import write_json
    from raystill.run.ray_data import map_items
    from raystill.run.scratch import scratch_directory
    from raystill.store.store import load_store

    settings, paths = require_curate(context.config), context.paths
    store = load_store(paths.store.resolve())
    with scratch_directory(context.output.resolve()) as scratch:
        inspection = _prepare(context, store, scratch)
        partitions = [{"partition": partition} for partition in _list_wanted(context, store, scratch)]
        files: list[Path] = []
        rows = 0
        for written in map_items(partitions, inspect_partition, inspection=inspection):
            files += map(Path, written.column("path").to_pylist())
            rows += sum(written.column("rows").to_pylist())
            context.events.emit("progress", done=rows, unit="rows")
        curated = curate(
            load_facts(files),
            settings,
            lambda: _find_pairs(sorted(files), inspection),
            judge_scores_path(context.config, paths),
        )
    _save(context, curated)
    report = describe(curated, settings)
    write_json(paths.curate_report, report)
    return StageResult(
        counts={
            "rows_in": report["rows_in"],
            "kept": report["kept"],
            "dropped": report["dropped"],
            "held_out": report["held_out"]["rows"],
            "redacted": report["personal_data"]["rows_redacted"],
            **{f"dropped_{code}": count for code, count in report["dropped_by_code"].items()},
        },
        metrics={"sources": report["sources"], "personal_data": report["personal_data"]},
        files=[paths.selection, paths.curate_rejects, paths.curate_report],
    )


def require_filter_files(config: Config, paths: RunPaths) -> None:
    """Raise for files of the filters that are missing or can't be used."""
    settings = require_curate(config)
    for name, path in filter_files(config).items():
        if not path.is_file():
            raise ConfigError(
                "a file that curate reads is not there", where=f"{path} ({name})", fix="correct the path"
            )
    if settings.tool_calls is not None:
        from raystill.text.tool_schema import load_tool_schema

        load_tool_schema(tool_schema_path(config), "curate.tool_calls")


def preflight_curate(config: Config, paths: RunPaths) -> None:
    """Raise for files of the filters that are missing or can't be used, and for a store of other answers."""
    from raystill.run.manifest import load_manifest
    from raystill.store.own_answers import require_own_answers
    from raystill.store.store import load_store

    require_filter_files(config, paths)
    generated = load_manifest(paths.stage_dir("generate"))
    require_own_answers(load_store(paths.store.resolve()), paths.requests, generated)


def filter_files(config: Config) -> dict[str, Path]:
    """Files outside the run that decide what is kept, by the key that names them."""
    settings = config.curate
    if settings is None:
        return {}
    found: dict[str, Path] = {}
    if settings.tool_calls is not None:
        found["curate.tool_calls.schema_path"] = tool_schema_path(config)
    if settings.judge is not None and settings.judge.scores is not None:
        found["curate.judge.scores"] = Path(settings.judge.scores).expanduser()
    if settings.decontaminate is not None:
        for number, path in enumerate(settings.decontaminate.against):
            found[f"curate.decontaminate.against.{number}"] = Path(path).expanduser()
    return found


def judge_scores_path(config: Config, paths: RunPaths) -> Path | None:
    """The file of the judge's scores: the configured one, else what the stage grade wrote."""
    judge = require_curate(config).judge
    if judge is None:
        return None
    return Path(judge.scores).expanduser() if judge.scores is not None else paths.grades


def tool_schema_path(config: Config) -> Path:
    """The file that lists the tools. Raises ConfigError where no key names one."""
    assert config.curate is not None and config.curate.tool_calls is not None
    named = config.curate.tool_calls.schema_path or config.teacher.base.tool_schema
    if named is None:
        raise ConfigError(
            "curate.tool_calls is on, and nothing says which tools there are",
            where="curate.tool_calls.schema_path",
            fix="set it, or teacher.base.tool_schema",
        )
    return Path(named).expanduser()


def require_curate(config: Config) -> CurateSection:
    """`curate`. Raises ConfigError where it is not given."""
    if config.curate is None:
        raise ConfigError(
            "there is nothing to curate by: the section `curate` is not given",
            where="curate",
            fix="add it (`curate: {}` takes the defaults), or go on without: training then takes every row",
        )
    return config.curate


def _prepare(context: StageContext, store: TeacherStore, scratch: Path) -> Inspection:
    from raystill.curate.inspect_rows import Inspection
    from raystill.curate.near_duplicates import NearDuplicateSettings

    settings = require_curate(context.config)
    alone = _build_checks(context.config)
    checks = list(alone)
    if settings.decontaminate is not None:
        from raystill.curate.contamination import ContaminationCheck, build_index, iter_held_out, save_index

        against = [Path(path).expanduser() for path in settings.decontaminate.against]
        held_out = iter_held_out(context.paths.prompt_table, against)
        save_index(scratch / "held_out.npz", build_index(held_out, settings.decontaminate.ngram))
        checks.append(ContaminationCheck(scratch / "held_out.npz", settings.decontaminate.threshold))
    near = settings.near_duplicates
    bands = None
    if near is not None:
        bands = NearDuplicateSettings.for_threshold(near.threshold, near.num_permutations)
    return Inspection(
        store=store,
        scratch=scratch,
        checks=tuple(checks),
        checks_held_out=alone,
        personal_data=settings.personal_data,
        near_duplicates=bands,
        with_logprobs=settings.best_of_n == "logprob",
    )


def _build_checks(config: Config) -> tuple[Check, ...]:
    """Filters that look at one row alone, in their documented order."""
    from raystill.curate.empty import check_empty
    from raystill.curate.finish_reason import FinishReasonCheck
    from raystill.curate.length import LengthCheck
    from raystill.curate.refusal import check_refusal
    from raystill.curate.tool_calls import ToolCallCheck
    from raystill.text.tool_schema import load_tool_schema

    settings = require_curate(config)
    checks: list[Check] = [check_empty] if settings.drop_empty else []
    checks.append(FinishReasonCheck(frozenset(settings.finish_reasons)))
    checks.append(LengthCheck(settings.length.min_tokens, settings.length.max_tokens))
    if settings.drop_refusals:
        checks.append(check_refusal)
    if settings.tool_calls is not None:
        checks.append(ToolCallCheck(load_tool_schema(tool_schema_path(config), "curate.tool_calls")))
    return tuple(checks)


def _list_wanted(context: StageContext, store: TeacherStore, scratch: Path) -> list[int]:
    """Write the run's requests by partition, with what its prompt table says; returns the partitions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raystill.curate.inspect_rows import WANTED_SCHEMA, wanted_path
    from raystill.store.identity import partition_of
    from raystill.store.requests import load_requests
    from raystill.text.prompt_table import iter_prompt_batches

    facts = {
        prompt.id: (prompt.source, prompt.task)
        for batch in iter_prompt_batches(context.paths.prompt_table)
        for prompt in batch
    }
    rows: dict[int, list[dict[str, str]]] = {}
    for request in load_requests(context.paths.requests):
        if request.prompt_id not in facts:
            raise DataError(
                f"the prompt table lacks prompt {request.prompt_id}, of request {request.key}",
                where=str(context.paths.prompt_table),
                fix="raystill prepare --fresh, then raystill generate --fresh: nothing stored is lost",
            )
        source, task = facts[request.prompt_id]
        row = {**vars(request), "source": source, "task": task}
        rows.setdefault(partition_of(request.key, store.num_partitions), []).append(row)
    for partition, listed in rows.items():
        pq.write_table(pa.Table.from_pylist(listed, WANTED_SCHEMA), wanted_path(scratch, partition))
    return sorted(rows)


def _find_pairs(files: list[Path], inspection: Inspection) -> Pairs:
    from raystill.curate.near_duplicates import find_band_pairs
    from raystill.run.ray_data import map_items

    settings = inspection.near_duplicates
    assert settings is not None
    if not files:
        return []
    bands = [{"band": band} for band in range(settings.num_bands)]
    found = map_items(bands, find_band_pairs, files=[str(path) for path in files], settings=settings)
    return [
        pair
        for table in found
        for pair in zip(table.column("key").to_pylist(), table.column("first").to_pylist(), strict=True)
    ]


def _save(context: StageContext, curated: Curated) -> None:
    from raystill.curate.rejects import save_rejects
    from raystill.store.selection import Selected, save_selection

    save_selection(
        context.paths.selection,
        [
            Selected(fact.key, fact.prompt_id, fact.split, fact.redacted, curated.scores.get(fact.key))
            for fact in curated.kept
        ],
    )
    save_rejects(context.paths.curate_rejects, curated)


def _inputs(config: Config) -> tuple[StageName, ...]:
    """Scores are waited for where completions are ranked by logprobs that generation didn't bring, and
    grades where a judge decides."""
    curate, inputs = config.curate, list[StageName](["generate"])
    if (
        curate is not None
        and curate.best_of_n == "logprob"
        and config.teacher.signals.capture != "generation"
    ):
        inputs.append("score")
    if curate is not None and curate.judge is not None and curate.judge.scores is None:
        inputs.append("grade")
    return tuple(inputs)


def _external_inputs(config: Config) -> dict[str, str]:
    from raystill.run.publish import sha256_file

    return {name: sha256_file(path) for name, path in filter_files(config).items() if path.is_file()}


STAGE = Stage(
    name="curate",
    config_keys=_CONFIG_KEYS,
    inputs=_inputs,
    body=run_curate,
    needs_ray=True,
    external_inputs=_external_inputs,
    preflight=preflight_curate,
    foresee=require_filter_files,
    grows=True,
)
