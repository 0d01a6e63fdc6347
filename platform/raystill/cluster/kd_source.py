"""Where distill will take its distributions from, and the memory that its teachers need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raystill.cluster.model_size import count_local_parameters
from raystill.config.kd_teacher import ASSISTANT, STUDENT, TEACHER, KdModel, TeacherWeights
from raystill.config.schema import Config
from raystill.config.signal_source import resolve_kd_models, resolve_signal_source

# Of an online teacher's parameter: no gradient, no moments. 4 bits leave embeddings and norms as they are.
_BYTES: dict[TeacherWeights, float] = {"float32": 4, "bfloat16": 2, "4bit": 1}


@dataclass(frozen=True)
class PlannedSource:
    """`text` for people; `teacher_bytes` per training worker, None where a model's size isn't known yet."""

    text: str
    teacher_bytes: int | None


def plan_kd_source(config: Config, student_parameters: int | None) -> PlannedSource | None:
    """The teacher source of distill; None without that stage."""
    section = config.train.distillation
    if section is None:
        return None
    source = resolve_signal_source(config)
    if source == "store":
        return PlannedSource("the store: no teacher in memory", 0)
    models = resolve_kd_models(config)
    sizes = [(_parameters(config, model, student_parameters), _BYTES[model.weights]) for model in models]
    known = [int(size * each) for size, each in sizes if size is not None]
    needed = sum(known) if len(known) == len(sizes) else None
    names = ", ".join(model.name for model in models)
    place = "in process" if section.teacher.worker is None else "in a process of its own beside each worker"
    if source == "online":
        return PlannedSource(f"{names}, {place}", needed)
    rollouts = section.teacher.rollouts
    written = f"the student's own text in {rollouts.share:.0%} of the rows ({rollouts.engine})"
    return PlannedSource(f"{names}, {place}, on {written}", needed)


def _parameters(config: Config, model: KdModel, student_parameters: int | None) -> int | None:
    if model.name == STUDENT:
        # With an adapter the base is there already.
        section = config.train.distillation
        return 0 if section is not None and section.peft.lora is not None else student_parameters
    name = model.name
    if name == ASSISTANT and config.assistant is not None:
        name = config.assistant.model.name
    elif name == TEACHER and config.teacher.open is not None:
        name = config.teacher.open.model.name
    return count_local_parameters(Path(name).expanduser())
