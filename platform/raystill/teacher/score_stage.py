"""The stage score: stored completions without distributions get the teacher's, by teacher forcing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raystill.config.schema import Config
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from collections.abc import Set
    from pathlib import Path

    from raystill.store.store import TeacherStore

_CONFIG_KEYS = (
    "teacher.engine",
    "teacher.open.model.name",
    "teacher.open.model.revision",
    "teacher.open.model.trust_remote_code",
    "teacher.open.model.bfloat16",
    "teacher.signals.kind",
    "teacher.signals.num_draws",
    "teacher.signals.num_logprobs",
    "teacher.signals.probe_rows",
    "teacher.store.path",
)


def run_score(context: StageContext) -> StageResult:
    """Score every row of the run whose signal has fewer than `teacher.signals.num_logprobs` entries, or that
    lacks the tier of `teacher.signals.kind`. Rows that are text to this teacher are tokenised for it.

    With `teacher.signals.probe_rows` two engines are compared on so many rows afterwards. Complete without
    starting an engine where there is nothing to do. Resumes from whatever is committed.
    """
    from raystill.run.scratch import scratch_directory
    from raystill.store.content import content_digest
    from raystill.store.recover import prepare_store
    from raystill.store.requested_keys import RequestedKeys
    from raystill.store.store import load_store
    from raystill.teacher.score_run import ScoreRun
    from raystill.teacher.tier_work import tier_work

    config = context.config
    tier = tier_work(config)
    store = load_store(context.paths.store.resolve())
    prepare_store(store)
    with scratch_directory(context.output) as scratch:
        keys = RequestedKeys(context.paths.requests, store.num_partitions)
        done = ScoreRun(context, store, keys, scratch)
        if tier is None:
            done.score()
        else:
            done.capture(tier)
        probe = _probe(context, store, keys, scratch)
    return StageResult(
        counts=done.counts(),
        metrics={"tokens_per_s": round(done.rate, 1)} | ({} if probe is None else {"probe": probe}),
        content=content_digest(store, ("rows", tier.kind if tier is not None else "scores")),
    )


def _probe(
    context: StageContext, store: TeacherStore, keys: Set[str], scratch: Path
) -> dict[str, Any] | None:
    num_rows = context.config.teacher.signals.probe_rows
    if num_rows == 0:
        return None
    from raystill.teacher.identify import identify_teacher
    from raystill.teacher.probe import probe_engines

    probe = probe_engines(identify_teacher(context.config), store, keys, num_rows, scratch)
    context.events.emit("probe", **probe)
    return probe


def preflight_score(config: Config, paths: RunPaths) -> None:
    """What can be known to be wrong before Ray and an engine start."""
    from raystill.config.engine import resolve_open_engine
    from raystill.run.manifest import load_manifest
    from raystill.store.own_answers import require_own_answers
    from raystill.store.store import load_store
    from raystill.teacher.preflight import preflight
    from raystill.teacher.tier_work import tier_work

    has_answers = config.teacher.closed is not None or config.teacher.base.from_store is not None
    # The answers' own logprobs may be all that is wanted: without a teacher the stage itself finds out.
    if config.teacher.open is not None or not has_answers:
        preflight(config, "transformers" if tier_work(config) is not None else resolve_open_engine(config))
    generated = load_manifest(paths.stage_dir("generate"))
    require_own_answers(load_store(paths.store.resolve()), paths.requests, generated)


def _inputs(config: Config) -> tuple[StageName, ...]:
    return ("generate",)


SCORE_STAGE = Stage(
    name="score",
    config_keys=_CONFIG_KEYS,
    inputs=_inputs,
    body=run_score,
    needs_ray=True,
    preflight=preflight_score,
    grows=True,
)
