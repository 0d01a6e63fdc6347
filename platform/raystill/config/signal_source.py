"""Where a configuration's KD term takes its distributions from."""

from __future__ import annotations

from typing import Literal

from raystill.config.kd_teacher import ASSISTANT, TEACHER, KdModel, KdTeacher
from raystill.config.schema import Config

SignalSourceName = Literal["store", "online", "on_policy"]


def resolve_signal_source(config: Config) -> SignalSourceName:
    """The source of distill: as given; `auto` is online where SFT trains an assistant, else the store."""
    given = _section(config).source
    if given == "auto":
        return "online" if trains_assistant(config) else "store"
    return given


def resolve_kd_models(config: Config) -> tuple[KdModel, ...]:
    """The online teachers: as given, else the assistant where SFT trains one, else `teacher.open`."""
    given = _section(config).models
    if given:
        return tuple(given)
    return (KdModel(name=ASSISTANT if trains_assistant(config) else TEACHER),)


def trains_assistant(config: Config) -> bool:
    """Whether the run has an assistant that SFT trains."""
    return config.assistant is not None and config.train.sft is not None


def learns_from_assistant(config: Config) -> bool:
    """Whether distill needs the model that SFT leaves behind as its teacher."""
    online = config.train.distillation is not None and resolve_signal_source(config) != "store"
    return online and any(model.name == ASSISTANT for model in resolve_kd_models(config))


def evaluates_signals(config: Config) -> bool:
    """Whether held-out answers come with distributions to compare students with. Those of a closed teacher,
    or of a file, do where an open teacher scores them, and where KD learns from the store anyway."""
    teacher, from_elsewhere = config.teacher, config.teacher.closed or config.teacher.base.from_store
    if teacher.signals.num_logprobs == 0:
        return False
    learnt = config.train.distillation is not None and resolve_signal_source(config) == "store"
    return learnt or teacher.open is not None or not from_elsewhere


def teacher_resources(config: Config, *, on_gpu: bool) -> dict[str, float]:
    """What Ray gives to the teachers' process beside each training worker of distill; empty where none is.

    `on_gpu`: whether that worker has a GPU.
    """
    worker = _section(config).worker
    if worker is None or config.train.distillation is None or resolve_signal_source(config) == "store":
        return {}
    gpus = worker.num_gpus if worker.num_gpus is not None else float(on_gpu)
    return {"CPU": float(worker.num_cpus)} | ({"GPU": gpus} if gpus else {})


def _section(config: Config) -> KdTeacher:
    distillation = config.train.distillation
    return KdTeacher() if distillation is None else distillation.teacher
