"""The stage grade: a judge scores the run's training answers, through the same machinery that asks a teacher.

The judge's replies are rows of a store of its own: keyed, journalled, budgeted and never asked for twice. The
scores are a table that `curate` reads for its thresholds and for the best of n.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.config.grade import GradeSection
from raystill.config.schema import Config
from raystill.config.teacher import SignalsSection, TeacherSection
from raystill.errors import ConfigError, Problem, RemoteError
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from raystill.store.store import TeacherStore
    from raystill.teacher.plan_requests import RequestPlan

# Keys of a teacher that a judge has too, in messages of the machinery that asks both.
_KEYS = re.compile(r"\bteacher\.(closed|open|vllm|store|engine)\b")
_CONFIG_KEYS = ("run.seed", "grade", "teacher.store.path", "teacher.base.from_store")


def run_grade(context: StageContext) -> StageResult:
    """Ask the judge about every training answer that it has not graded yet, and write the scores.

    Replies without a readable score are listed with the reason. Raises what asking a teacher raises.
    """
    from raystill.run.scratch import scratch_directory
    from raystill.store.store import load_store
    from raystill.teacher.grade_questions import write_questions
    from raystill.teacher.grades import collect_grades, save_grades

    grade, paths = require_grade(context.config), context.paths
    questions = write_questions(
        grade, load_store(paths.store.resolve()), paths.requests, paths.prompt_table, paths.grade_questions
    )
    judge = replace(
        context,
        config=judge_config(context.config),
        paths=RunPaths(paths.root, paths.judge_store),
    )
    with naming_the_judge(), scratch_directory(context.output) as scratch:
        ask = _ask_endpoint if grade.closed is not None else _ask_model
        store, plan, metrics = ask(judge, paths.grade_questions, scratch)
        grades = collect_grades(grade, store, plan.table, questions.asked)
    save_grades(grades, paths.grades, paths.ungraded)
    return StageResult(
        counts={
            "answers": questions.num_answers,
            "questions": plan.num_requests,
            "reused": plan.reused,
            "done": len(grades.scores),
            "ungraded": len(grades.reasons),
            "empty": questions.empty,
        },
        metrics={**metrics, "ungraded": dict(sorted(Counter(grades.reasons.values()).items()))},
        files=[paths.grades, paths.ungraded],
    )


def judge_config(config: Config) -> Config:
    """The configuration of a run whose teacher is the judge: what the stages of a teacher read."""
    grade = require_grade(config)
    teacher = TeacherSection(
        engine="openai" if grade.closed is not None else grade.engine,
        open=grade.open,
        closed=grade.closed,
        signals=SignalsSection(num_logprobs=0),
        vllm=grade.vllm,
        store=grade.store,
    )
    return config.model_copy(update={"teacher": teacher})


def require_grade(config: Config) -> GradeSection:
    """`grade`. Raises ConfigError where it is not given."""
    if config.grade is None:
        raise ConfigError(
            "there is no judge: the section `grade` is not given",
            where="grade",
            fix="add it (grade: {open: {model: {name: ...}}}), or name a file of scores: curate.judge.scores",
        )
    return config.grade


def preflight_grade(config: Config, paths: RunPaths) -> None:
    """What can be known to be wrong before Ray and an engine start, or a request is sent."""
    from raystill.config.engine import resolve_open_engine
    from raystill.teacher.api.identify import identify_endpoint
    from raystill.teacher.preflight import preflight

    judge = judge_config(config)
    with naming_the_judge():
        if judge.teacher.closed is not None:
            identify_endpoint(judge)
        else:
            preflight(judge, resolve_open_engine(judge))


@contextmanager
def naming_the_judge() -> Iterator[None]:
    """A judge is asked as a teacher is: what is wrong is named by the keys that the user wrote."""
    try:
        yield
    except (ConfigError, RemoteError) as error:
        problems = tuple(
            Problem(*(_KEYS.sub(r"grade.\1", text) for text in (found.what, found.where, found.fix)))
            for found in error.problems
        )
        kind = ConfigError if isinstance(error, ConfigError) else RemoteError
        raise kind(problems[0].what, problems[0].where, problems[0].fix, problems) from error


def _ask_model(
    judge: StageContext, questions: Path, scratch: Path
) -> tuple[TeacherStore, RequestPlan, dict[str, Any]]:
    from raystill.store.recover import prepare_store
    from raystill.teacher.generate_stage import build_orders, open_stage_store
    from raystill.teacher.identify import identify_teacher
    from raystill.teacher.open_requests import plan_open_requests
    from raystill.teacher.preflight import require_open_teacher
    from raystill.teacher.run_shards import run_shards

    known = identify_teacher(judge.config)
    resumes = require_open_teacher(judge.config).pipeline.resume
    store = open_stage_store(judge, known.identity, resumes=resumes)
    prepare_store(store)
    plan = plan_open_requests(known, store, questions, judge.output / "requests.parquet", scratch)
    _emit_plan(judge, plan)
    blueprint, order = build_orders(known, store, plan, scratch)
    progress = run_shards(plan.shards, blueprint, order, judge.events)
    return store, plan, {"engine": known.facts.engine, "tokens_per_s": round(progress.tokens_per_s, 1)}


def _ask_endpoint(
    judge: StageContext, questions: Path, scratch: Path
) -> tuple[TeacherStore, RequestPlan, dict[str, Any]]:
    from raystill.store.recover import prepare_store
    from raystill.teacher.api.generate import ask_endpoint
    from raystill.teacher.api.identify import identify_endpoint
    from raystill.teacher.api.plan import plan_api_requests
    from raystill.teacher.generate_stage import open_stage_store

    endpoint = identify_endpoint(judge.config)
    store = open_stage_store(
        judge, endpoint.identity, resumes=endpoint.closed.pipeline.resume, has_journal=True
    )
    prepare_store(store)
    plan, estimate = plan_api_requests(endpoint, store, questions, judge.output / "requests.parquet", scratch)
    _emit_plan(judge, plan)
    run = ask_endpoint(judge, endpoint, store, plan, estimate)
    return store, plan, run.metrics()


def _emit_plan(judge: StageContext, plan: RequestPlan) -> None:
    judge.events.emit(
        "requests_planned", requests=plan.num_requests, reused=plan.reused, shards=len(plan.shards)
    )


def _inputs(config: Config) -> tuple[StageName, ...]:
    return ("prepare", "generate")


GRADE_STAGE = Stage(
    name="grade",
    config_keys=_CONFIG_KEYS,
    inputs=_inputs,
    body=run_grade,
    needs_ray=True,
    preflight=preflight_grade,
    foresee=preflight_grade,
    grows=True,
)
