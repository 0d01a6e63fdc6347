"""The stage generate: every prompt of the table gets the teacher's completion, once, in the teacher store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.config.prepared import find_prepared
from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from raystill.store.identity import StoreIdentity
    from raystill.store.store import TeacherStore
    from raystill.teacher.build_engine import EngineBlueprint
    from raystill.teacher.identify import KnownTeacher
    from raystill.teacher.plan_requests import RequestPlan
    from raystill.teacher.row_work import WorkOrder

_CONFIG_KEYS = (
    "run.seed",
    "teacher.engine",
    "teacher.open.model.name",
    "teacher.open.model.revision",
    "teacher.open.model.trust_remote_code",
    "teacher.open.model.bfloat16",
    "teacher.open.pipeline.max_new_tokens",
    "teacher.open.pipeline.temperature",
    "teacher.open.pipeline.top_p",
    "teacher.open.pipeline.top_k",
    "teacher.open.pipeline.do_sample",
    "teacher.open.tokenizer.additional_special_tokens",
    "teacher.open.tokenizer.add_generation_prompt",
    "teacher.open.tokenizer.truncation",
    "teacher.open.tokenizer.skip_special_tokens",
    "teacher.open.tokenizer.clean_up_tokenization_spaces",
    "teacher.signals.num_logprobs",
    "teacher.signals.capture",
    "teacher.vllm.max_model_len",
    "teacher.store.path",
    "teacher.base.from_store",
    "teacher.base.output_path",
    "teacher.base.num_samples",
    "teacher.base.reasoning",
    "teacher.base.tool_schema",
    "teacher.open.data.download",
    "teacher.closed.data.download",
    "teacher.closed.model.name",
    "teacher.closed.model.tokenizer",
    "teacher.closed.pipeline.max_new_tokens",
    "teacher.closed.pipeline.temperature",
    "teacher.closed.pipeline.top_p",
    "teacher.closed.endpoint.base_url",
)


def run_generate(context: StageContext) -> StageResult:
    """Open the store, generate what it lacks, account for every request, export the text.

    Resumes from whatever is committed. Raises DataError where done + rejected is not what was asked for,
    and what the teacher's preflight, its engine and the store raise.
    """
    if context.config.teacher.base.from_store is not None:
        return _adopt_stored(context)
    if find_prepared(context.config.teacher) is not None:
        return _import_prepared(context)
    if context.config.teacher.closed is not None:
        return _generate_closed(context)
    return _generate_open(context)


def _generate_open(context: StageContext) -> StageResult:
    from raystill.run.scratch import scratch_directory
    from raystill.store.recover import prepare_store
    from raystill.teacher.identify import engine_notes, identify_teacher
    from raystill.teacher.open_requests import describe_too_long, plan_open_requests
    from raystill.teacher.preflight import require_open_teacher
    from raystill.teacher.run_shards import run_shards

    teacher = identify_teacher(context.config)
    for note in engine_notes(teacher):
        context.events.emit("note", message=note)
    too_long = describe_too_long(teacher, context.paths.prompt_table)
    if too_long is not None:
        context.events.emit("warning", message=too_long)
    resumes = require_open_teacher(context.config).pipeline.resume
    store = open_stage_store(context, teacher.identity, resumes=resumes)
    prepare_store(store)
    with scratch_directory(context.output) as scratch:
        paths = context.paths
        plan = plan_open_requests(teacher, store, paths.prompt_table, paths.request_plan, scratch)
        _emit_plan(context, plan)
        blueprint, order = build_orders(teacher, store, plan, scratch)
        progress = run_shards(plan.shards, blueprint, order, context.events)
    metrics = {
        "tokens_per_s": round(progress.tokens_per_s, 1),
        "tail_fraction": round(progress.tail_fraction, 3),
        "engine": teacher.facts.engine,
        "dtype": teacher.facts.dtype,
    }
    return _finish(context, store, plan, metrics)


def _generate_closed(context: StageContext) -> StageResult:
    from raystill.run.scratch import scratch_directory
    from raystill.store.recover import prepare_store
    from raystill.teacher.api.generate import ask_endpoint
    from raystill.teacher.api.identify import identify_endpoint
    from raystill.teacher.api.plan import plan_api_requests

    endpoint = identify_endpoint(context.config)
    store = open_stage_store(
        context, endpoint.identity, resumes=endpoint.closed.pipeline.resume, has_journal=True
    )
    # First: what a killed run has paid for is neither asked again nor left out of its cost.
    prepare_store(store)
    with scratch_directory(context.output) as scratch:
        paths = context.paths
        plan, estimate = plan_api_requests(endpoint, store, paths.prompt_table, paths.request_plan, scratch)
        _emit_plan(context, plan)
        run = ask_endpoint(context, endpoint, store, plan, estimate)
    return _finish(context, store, plan, run.metrics())


def _import_prepared(context: StageContext) -> StageResult:
    from raystill.run.scratch import scratch_directory
    from raystill.store.recover import prepare_store
    from raystill.teacher.download import identify_download, import_answers
    from raystill.teacher.preflight import require_open_teacher

    teacher = context.config.teacher
    prepared = find_prepared(teacher)
    assert prepared is not None
    download = identify_download(context.config, prepared, context.inputs["prepare"].inputs)
    pipeline = (teacher.closed or require_open_teacher(context.config)).pipeline
    store = open_stage_store(context, download.identity, resumes=pipeline.resume)
    prepare_store(store)
    paths = context.paths
    with scratch_directory(context.output) as scratch:
        plan = import_answers(download, store, paths.prompt_table, paths.request_plan, scratch)
    _emit_plan(context, plan)
    return _finish(context, store, plan, {"engine": download.identity.engine, "dataset": prepared.label})


def _adopt_stored(context: StageContext) -> StageResult:
    from raystill.run.scratch import scratch_directory
    from raystill.store.recover import prepare_store
    from raystill.store.store import load_store
    from raystill.teacher.adopt import adopt_answers

    store = load_store(context.paths.store.resolve())
    prepare_store(store)
    with scratch_directory(context.output) as scratch:
        adopted = adopt_answers(store, context.paths.prompt_table, context.paths.request_plan, scratch)
    _emit_plan(context, adopted.plan)
    metrics = {"engine": store.identity.engine, "teacher": store.identity.teacher, "unused": adopted.unused}
    return _finish(context, store, adopted.plan, metrics)


def _emit_plan(context: StageContext, plan: RequestPlan) -> None:
    context.events.emit(
        "requests_planned", requests=plan.num_requests, reused=plan.reused, shards=len(plan.shards)
    )


def _finish(
    context: StageContext, store: TeacherStore, plan: RequestPlan, metrics: dict[str, Any]
) -> StageResult:
    """Account for every request, and export the text."""
    from raystill.run.publish import sha256_file
    from raystill.store.content import content_digest
    from raystill.store.endings import find_cut_off
    from raystill.store.export import export_jsonl
    from raystill.store.requests import copy_requests
    from raystill.teacher.plan_requests import settle_accounts

    accounts = settle_accounts(plan, store)
    if accounts.done + accounts.rejected != plan.num_requests:
        missing = plan.num_requests - accounts.done - accounts.rejected
        raise DataError(
            f"{missing} of {plan.num_requests} requests have neither an answer nor a reject",
            where=str(store.path),
            fix="run the stage again: only the missing ones are generated",
        )
    copy_requests(plan.table, context.paths.requests)
    output_path = context.config.teacher.base.output_path
    exported = Path(output_path or context.paths.teacher_jsonl).expanduser()
    export_jsonl(store, exported, requests=context.paths.requests)
    digest = content_digest(store)
    return StageResult(
        counts={
            "requests": plan.num_requests,
            "done": accounts.done,
            "rejected": accounts.rejected,
            "reused": plan.reused,
            "cut_off": len(find_cut_off(store, context.paths.requests)),
            "completion_tokens": accounts.completion_tokens,
        },
        metrics={**metrics, "rejects": accounts.reject_codes, "store_sha256": digest},
        files=[context.paths.requests, *([exported] if exported.is_relative_to(context.output) else [])],
        content={"store": digest, "requests": sha256_file(context.paths.requests)},
    )


def preflight_generate(config: Config, paths: RunPaths) -> None:
    """What can be known to be wrong before Ray and an engine start, or a request is sent."""
    from raystill.config.engine import resolve_engine
    from raystill.teacher.api.identify import identify_endpoint
    from raystill.teacher.preflight import preflight

    if find_prepared(config.teacher) is not None or config.teacher.base.from_store is not None:
        return
    if config.teacher.closed is not None:
        identify_endpoint(config)
    else:
        preflight(config, resolve_engine(config))


def open_stage_store(
    context: StageContext, identity: StoreIdentity, *, resumes: bool, has_journal: bool = False
) -> TeacherStore:
    """The run's store; unless it `resumes`, a new one, once per stage output: the old one is set aside.

    `has_journal` says that answers of an API go into it: on object storage the run then owns it.
    """
    from raystill.run.publish import write_json
    from raystill.store.claim import claim_store
    from raystill.store.store import open_store, start_new

    path = context.paths.store.resolve()
    if not resumes and not _began_here(context):
        aside = start_new(path)
        if aside is not None:
            context.events.emit("store_set_aside", path=str(aside))
    store = open_store(path, identity, context.config.teacher.store.num_partitions)
    if not resumes:
        write_json(_marker(context), {"store": str(context.paths.store)})
    return claim_store(store, context.paths.store_locks) if has_journal else store


def _began_here(context: StageContext) -> bool:
    """Whether this output already has its new store: a crash must not throw its rows away as well."""
    return _marker(context).exists()


def _marker(context: StageContext) -> Path:
    return context.output / "new_store.json"


def build_orders(
    teacher: KnownTeacher, store: TeacherStore, plan: RequestPlan, scratch: Path
) -> tuple[EngineBlueprint, WorkOrder]:
    """What workers need: how to start the engine, and what to do with rows."""
    from raystill.teacher.identify import captures_signals
    from raystill.teacher.preflight import require_open_teacher
    from raystill.teacher.row_work import GenerateWork, WorkOrder
    from raystill.teacher.sampling import sampling_of

    config = teacher.config
    tokenizer = require_open_teacher(config).tokenizer
    num_logprobs = config.teacher.signals.num_logprobs if captures_signals(config) else 0
    work = GenerateWork(
        tokenizer_directory=str(teacher.facts.files.directory),
        teacher_id=store.identity.teacher_id,
        sampling_by_split={
            split: sampling_of(config, split, teacher.tool_schema) for split in ("train", "eval")
        },
        num_logprobs=num_logprobs,
        skip_special_tokens=tokenizer.skip_special_tokens,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        trust_remote_code=require_open_teacher(config).model.trust_remote_code,
        reasoning=config.teacher.base.reasoning,
        markers=teacher.markers,
        tool_schema=teacher.tool_schema,
    )
    blueprint = teacher.blueprint(
        num_logprobs=num_logprobs, scoring=False, structured_outputs=plan.has_schemas
    )
    return blueprint, WorkOrder(store, work, str(scratch / "deaths"))


def _inputs(config: Config) -> tuple[StageName, ...]:
    return ("prepare",)


GENERATE_STAGE = Stage(
    name="generate",
    config_keys=_CONFIG_KEYS,
    inputs=_inputs,
    body=run_generate,
    needs_ray=True,
    preflight=preflight_generate,
    grows=True,
)
