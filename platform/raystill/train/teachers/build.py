"""Chooses the teacher source of a run, and puts it together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raystill.config.kd_teacher import Rollouts
from raystill.config.schema import Config
from raystill.errors import ConfigError
from raystill.run.paths import RunPaths
from raystill.text.chat import ChatFormat
from raystill.train.batches import StepPlanner
from raystill.train.clock import StepClock
from raystill.train.examples import ExampleSet
from raystill.train.group import WorkerGroup
from raystill.train.rollouts.engine import RolloutEngine, RolloutSampling
from raystill.train.rollouts.transformers_engine import TransformersRollouts
from raystill.train.rollouts.vllm_engine import VllmRollouts
from raystill.train.rollouts.window import WindowMaker
from raystill.train.settings import TrainSettings
from raystill.train.sharding import is_sharded
from raystill.train.student import Student
from raystill.train.teachers.aligner import HiddenAligner
from raystill.train.teachers.frozen import CheckpointTeacher
from raystill.train.teachers.load import (
    TeacherPlace,
    load_teachers,
    locate_teachers,
    require_context,
    require_same_tokens,
)
from raystill.train.teachers.on_policy import OnPolicySignals
from raystill.train.teachers.online import OnlineSignals
from raystill.train.teachers.panel import LocalPanel, OnlineTeacher, Panel
from raystill.train.teachers.remote_panel import start_panel
from raystill.train.teachers.source import SignalSource
from raystill.train.teachers.stored import StoredSignals


def build_source(
    config: Config,
    paths: RunPaths,
    settings: TrainSettings,
    group: WorkerGroup,
    chat: ChatFormat,
    student: Student,
    planner: StepPlanner,
    clock: StepClock,
) -> SignalSource:
    """The source that `settings` name, with its models loaded and checked against the student.

    Raises ConfigError, DataError or RemoteError for models that can't teach this student.
    """
    examples = planner.examples
    if not settings.terms.uses_teacher or settings.source == "store":
        return StoredSignals(planner, examples, group.rank)
    assert config.train.distillation is not None
    section = config.train.distillation.teacher
    places = locate_teachers(config, paths)
    require_same_tokens(places, chat)
    require_context(places, _longest_row(examples, settings, section.rollouts, student))
    _refuse_sharded(settings, student, places)
    panel, alignment = _build_panel(config, settings, student, places)
    online = OnlineSignals(
        panel,
        planner,
        examples,
        group.rank,
        num_logprobs=section.num_logprobs,
        alignment=alignment,
        clock=clock,
    )
    if settings.source == "online":
        return online
    rollouts = section.rollouts
    sampling = _sampling(rollouts, settings, chat, student)
    engine = _build_engine(rollouts, paths, settings, sampling, student, group.rank)
    maker = WindowMaker(
        planner=planner,
        prompts=[examples.tokens(row)[: examples.first_target(row)] for row in range(len(examples))],
        group=group,
        device=student.device,
        seed=settings.seed,
        share=rollouts.share,
        max_new_tokens=rollouts.max_new_tokens,
    )
    return OnPolicySignals(
        online,
        engine,
        maker,
        examples,
        sync_every=rollouts.sync_every,
        total_steps=settings.total_steps(len(examples)),
        eos_ids=sampling.eos_ids,
        clock=clock,
    )


def _build_panel(
    config: Config, settings: TrainSettings, student: Student, places: Sequence[TeacherPlace]
) -> tuple[Panel, HiddenAligner | None]:
    """The teachers, in this process or in one of their own, and the term on their hidden states."""
    assert config.train.distillation is not None
    if config.train.distillation.teacher.worker is not None:
        return start_panel(config, settings, places, student.device), None
    teachers = load_teachers(places, student, packed=settings.packed)
    return LocalPanel(teachers), build_aligner(config, student, teachers)


def build_aligner(
    config: Config, student: Student, teachers: Sequence[OnlineTeacher]
) -> HiddenAligner | None:
    """The `losses.hidden` term, if any. Raises ConfigError where there isn't one other model to follow."""
    section = config.losses.hidden
    if section is None:
        return None
    model = teachers[0].model
    if len(teachers) > 1 or not isinstance(model, CheckpointTeacher) or is_sharded(student.network):
        raise ConfigError(
            "hidden states can follow one teacher with weights of its own, beside a student in one piece",
            where="losses.hidden, train.distillation.teacher.models, training.parallelism",
            fix="name one checkpoint as the teacher and keep parallelism: ddp, or remove losses.hidden",
        )
    return HiddenAligner(student, model.causal_lm, section)


def _longest_row(examples: ExampleSet, settings: TrainSettings, rollouts: Rollouts, student: Student) -> int:
    """Tokens of the longest row that is going to be judged; a rollout may be longer than the text."""
    longest = int(examples.lengths.max())
    if settings.source != "on_policy":
        return longest
    prompts = max(examples.first_target(row) for row in range(len(examples)))
    written = min(prompts + rollouts.max_new_tokens, settings.max_seq_len, student.context)
    return max(longest, written)


def _refuse_sharded(settings: TrainSettings, student: Student, places: Sequence[TeacherPlace]) -> None:
    own = any(place.source is None for place in places)
    if is_sharded(student.network) and (settings.source == "on_policy" or own):
        raise ConfigError(
            "a student whose weights are cut among workers can't write rollouts or teach itself",
            where="training.parallelism, train.distillation.teacher",
            fix="set parallelism: ddp, or let another model teach online",
        )


def _sampling(
    rollouts: Rollouts, settings: TrainSettings, chat: ChatFormat, student: Student
) -> RolloutSampling:
    return RolloutSampling(
        max_new_tokens=rollouts.max_new_tokens,
        temperature=rollouts.temperature,
        top_p=rollouts.top_p,
        eos_ids=frozenset((chat.turn_end_id, *chat.eos_token_ids)),
        context=min(settings.max_seq_len, student.context),
        batch_size=rollouts.batch_size,
    )


def _build_engine(
    rollouts: Rollouts,
    paths: RunPaths,
    settings: TrainSettings,
    sampling: RolloutSampling,
    student: Student,
    rank: int,
) -> RolloutEngine:
    if rollouts.engine == "transformers":
        return TransformersRollouts(student, sampling, settings.precision)
    return VllmRollouts(
        student,
        sampling,
        memory_gib=rollouts.memory_gib,
        num_threads=torch.get_num_threads(),
        scratch=paths.rollout_weights(settings.stage, rank),
    )
