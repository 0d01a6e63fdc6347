"""Putting a training run together from the configuration and the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.store import load_store
from raystill.text.chat import ChatFormat
from raystill.train.attention import choose_packing
from raystill.train.batches import StepPlanner
from raystill.train.build import build_model, build_student, load_student_chat
from raystill.train.clock import StepClock
from raystill.train.device import choose_precision, set_up_torch
from raystill.train.encode import TrainingData, load_training_data
from raystill.train.examples import ExampleSet
from raystill.train.group import WorkerGroup
from raystill.train.objective import Objective, build_objective, require_weighted_sources
from raystill.train.optimizer import build_optimizer
from raystill.train.output import save_initial_model
from raystill.train.selection import load_training_rows
from raystill.train.settings import TrainSettings, TrainStageName, resolve_settings
from raystill.train.sharding import shard_if_needed
from raystill.train.state import TrainState
from raystill.train.student import Student
from raystill.train.teacher_head import load_teacher_head
from raystill.train.teachers.build import build_source
from raystill.train.teachers.source import SignalSource
from raystill.train.token_match import match_tokenizers


@dataclass(frozen=True)
class TrainJob:
    """What one worker needs to know; plain data, so it crosses process boundaries."""

    config: Config
    paths: RunPaths
    stage: TrainStageName
    device: str
    num_threads: int


@dataclass(frozen=True)
class TrainRun:
    """A training run in memory, as one worker holds it."""

    job: TrainJob
    settings: TrainSettings
    group: WorkerGroup
    chat: ChatFormat
    data: TrainingData
    data_fingerprint: str
    planner: StepPlanner
    source: SignalSource
    objective: Objective
    state: TrainState
    clock: StepClock
    notes: list[str]


def assemble(job: TrainJob, group: WorkerGroup) -> TrainRun:
    """Build model, data, optimizer and plan. The first worker also keeps the untouched model.

    Everything that can be wrong with the model, the data or their match is found here, before step 1.
    """
    settings = resolve_settings(job.config, job.stage)
    device = torch.device(job.device)
    set_up_torch(job.config, device, job.num_threads)
    settings = replace(settings, precision=choose_precision(settings, device.type))
    notes: list[str] = []
    chat = load_student_chat(job.config, job.paths, job.stage)
    store = load_store(job.paths.store)
    match = match_tokenizers(job.config, store, chat, settings.reads_stored_signals)
    if not match.same_template:
        notes.append("the student's chat template differs from the teacher's: prompts are rendered again")
    model = build_model(job.config, job.paths, settings, chat, device, notes)
    plain = Student(model, model)
    data = load_training_data(
        store,
        load_training_rows(job.config, job.paths),
        settings,
        chat,
        match,
        vocab_size=plain.vocab_size,
        context=plain.context,
        cache=job.paths.training_examples(job.stage),
    )
    notes.extend(data.notes)
    require_weighted_sources(settings.source_weights, data.train.source_names)
    if settings.reads_stored_signals and settings.signal_kind == "hidden":
        head = load_teacher_head(job.config).to(device)
        data.train.teacher_head = data.held_out.teacher_head = head
    if group.is_first:
        save_initial_model(model, chat, job.paths.initial_model(job.stage))
    student = build_student(model, settings)
    settings = replace(settings, packed=choose_packing(settings, model, notes))
    shard_if_needed(student, settings, group.size)
    planner = StepPlanner(data.train, settings, group.size)
    clock = StepClock()
    source = build_source(job.config, job.paths, settings, group, chat, student, planner, clock)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    state = TrainState(
        student, build_optimizer(student.network, settings), scaler, settings.total_steps(len(data.train))
    )
    return TrainRun(
        job=job,
        settings=settings,
        group=group,
        chat=chat,
        data=data,
        data_fingerprint=fingerprint_data(data.train),
        planner=planner,
        source=source,
        objective=_choose_objective(job.config, settings, source),
        state=state,
        clock=clock,
        notes=notes,
    )


def _choose_objective(config: Config, settings: TrainSettings, source: SignalSource) -> Objective:
    return build_objective(
        settings.terms,
        source.signals,
        source.alignment,
        settings.source_weights,
        source.announce,
        counts_right=config.trackers.trl_names,
    )


def fingerprint_data(examples: ExampleSet) -> str:
    """Hex sha256 of everything that training reads from the rows."""
    digest = hashlib.sha256()
    for array in examples.arrays():
        digest.update(str((array.dtype, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
