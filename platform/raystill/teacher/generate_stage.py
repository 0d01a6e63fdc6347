"""The stage generate: every prompt of the table gets the teacher's completion, once, in the teacher store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
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
    "teacher.base.output_path",
    "teacher.base.num_samples",
    "teacher.base.reasoning",
    "teacher.base.tool_schema",
)


def run_generate(context: StageContext) -> StageResult:
    """Open the store, generate what it lacks, account for every request, export the text.

    Resumes from whatever is committed. Raises DataError where done + rejected is not what was asked for,
    and what the teacher's preflight, its engine and the store raise.
    """
    from raystill.run.publish import sha256_file
    from raystill.run.scratch import scratch_directory
    from raystill.store.content import content_digest
    from raystill.store.export import export_jsonl
    from raystill.store.repair import sweep_dead_writers
    from raystill.store.requests import save_requests
    from raystill.teacher.identify import engine_notes, identify_teacher
    from raystill.teacher.plan_requests import plan_requests, settle_accounts
    from raystill.teacher.run_shards import run_shards

    config = context.config
    teacher = identify_teacher(config)
    for note in engine_notes(teacher):
        context.events.emit("note", message=note)
    store = _open_store(context, teacher)
    sweep_dead_writers(store)
    with scratch_directory(context.output) as scratch:
        plan = plan_requests(teacher, store, context.paths.prompt_table, scratch)
        context.events.emit(
            "requests_planned", requests=plan.num_requests, reused=plan.reused, shards=len(plan.shards)
        )
        blueprint, order = _orders(teacher, store, plan, scratch)
        progress = run_shards(plan.shards, blueprint, order, context.events)
    accounts = settle_accounts(plan, store)
    if accounts.done + accounts.rejected != plan.num_requests:
        missing = plan.num_requests - accounts.done - accounts.rejected
        raise DataError(
            f"{missing} of {plan.num_requests} requests have neither an answer nor a reject",
            where=str(store.path),
            fix="run the stage again: only the missing ones are generated",
        )
    save_requests(context.paths.requests, plan.requests)
    exported = Path(config.teacher.base.output_path or context.paths.teacher_jsonl).expanduser()
    export_jsonl(store, exported, keys={request.key for request in plan.requests})
    return StageResult(
        counts={
            "requests": plan.num_requests,
            "done": accounts.done,
            "rejected": accounts.rejected,
            "reused": plan.reused,
            "completion_tokens": accounts.completion_tokens,
        },
        metrics={
            "tokens_per_s": round(progress.tokens_per_s, 1),
            "tail_fraction": round(progress.tail_fraction, 3),
            "engine": teacher.facts.engine,
            "dtype": teacher.facts.dtype,
            "rejects": accounts.reject_codes,
        },
        files=[context.paths.requests, *([exported] if exported.is_relative_to(context.output) else [])],
        content={"store": content_digest(store), "requests": sha256_file(context.paths.requests)},
    )


def preflight_generate(config: Config, paths: RunPaths) -> None:
    """What can be known to be wrong before Ray and an engine start; see `identify_teacher`."""
    from raystill.config.engine import resolve_engine
    from raystill.teacher.preflight import preflight

    preflight(config, resolve_engine(config))


def _open_store(context: StageContext, teacher: KnownTeacher) -> TeacherStore:
    from raystill.store.store import open_store, start_new
    from raystill.teacher.preflight import require_open_teacher

    path = context.paths.store.resolve()
    if not require_open_teacher(context.config).pipeline.resume and not _began_here(context):
        aside = start_new(path)
        if aside is not None:
            context.events.emit("store_set_aside", path=str(aside))
    store = open_store(path, teacher.identity, context.config.teacher.store.num_partitions)
    _mark_begun(context)
    return store


def _began_here(context: StageContext) -> bool:
    """Whether this output already has its new store: a crash must not throw its rows away as well."""
    return _marker(context).exists()


def _mark_begun(context: StageContext) -> None:
    if not context.config.teacher.open or context.config.teacher.open.pipeline.resume:
        return
    from raystill.run.publish import write_json

    write_json(_marker(context), {"store": str(context.paths.store)})


def _marker(context: StageContext) -> Path:
    return context.output / "new_store.json"


def _orders(
    teacher: KnownTeacher, store: TeacherStore, plan: RequestPlan, scratch: Path
) -> tuple[EngineBlueprint, WorkOrder]:
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
)
