"""Contradictions of `train.distillation.teacher`: sources and what they can't do."""

from __future__ import annotations

from collections.abc import Iterator

from raystill.config.kd_teacher import ASSISTANT, STUDENT, TEACHER
from raystill.config.loaded import LoadedConfig
from raystill.config.losses import largest
from raystill.config.signal_source import resolve_kd_models, resolve_signal_source, trains_assistant
from raystill.config.training import DistillationSection
from raystill.config.worker_range import worker_range
from raystill.errors import Problem

_TEACHER = "train.distillation.teacher"
_SOURCE = f"{_TEACHER}.source"
_KD = "train.distillation.knowledgedistillation"


def find_source_contradictions(loaded: LoadedConfig) -> Iterator[Problem]:
    """KD without distributions, keys that the chosen source has no use for, models that aren't there."""
    if loaded.config.train.distillation is None:
        return
    yield from _weights(loaded)
    yield from _idle_keys(loaded)
    source = resolve_signal_source(loaded.config)
    if source == "store":
        yield from _stored(loaded)
    else:
        yield from _models(loaded)
        yield from _worker(loaded)
    if source == "on_policy":
        yield from _rollouts(loaded)


def _kl_weight(loaded: LoadedConfig) -> tuple[float, str]:
    """The weight of the KD term, and the key that gives it."""
    losses, distillation = loaded.config.losses, _distillation(loaded)
    if losses.kl_weight is not None:
        return largest(losses.kl_weight), "losses.kl_weight"
    return distillation.knowledgedistillation.weight, f"{_KD}.weight"


def _ce_weight(loaded: LoadedConfig) -> float:
    given = loaded.config.losses.ce_weight
    if given is not None:
        return largest(given)
    return 1.0 - _distillation(loaded).knowledgedistillation.weight


def _weights(loaded: LoadedConfig) -> Iterator[Problem]:
    if _kl_weight(loaded)[0] == 0 and _ce_weight(loaded) == 0:
        yield Problem(
            "all weights of the distillation loss are 0: nothing would be learnt",
            loaded.where("losses.kl_weight", "losses.ce_weight"),
            "give one of them a weight",
        )


def _stored(loaded: LoadedConfig) -> Iterator[Problem]:
    losses, stored = loaded.config.losses, loaded.config.teacher.signals.num_logprobs
    kl_weight, path = _kl_weight(loaded)
    if kl_weight > 0 and stored == 0:
        yield Problem(
            f"`{path}` is {kl_weight:g} and `teacher.signals.num_logprobs` is 0: KD has no distributions",
            loaded.where(path, "teacher.signals.num_logprobs"),
            f"store logprobs (20 is a good number), or set {path}: 0 to train on the text alone",
        )
    elif losses.num_logprobs is not None and losses.num_logprobs > stored:
        yield Problem(
            f"`losses.num_logprobs` is {losses.num_logprobs}, `teacher.signals.num_logprobs` stores {stored}",
            loaded.where("losses.num_logprobs", "teacher.signals.num_logprobs"),
            f"use at most {stored}, or store more",
        )


def _idle_keys(loaded: LoadedConfig) -> Iterator[Problem]:
    source = resolve_signal_source(loaded.config)
    reasons = []
    if source == "store":
        idle = ("models", "num_logprobs", "worker")
        reasons += [(f"{_TEACHER}.{key}", "stored signals are read") for key in idle]
    if source != "on_policy":
        reasons.append((f"{_TEACHER}.rollouts", "only on_policy lets the student write"))
    if source == "store" or _kl_weight(loaded)[0] == 0:
        reasons.append(("losses.hidden", "it follows a teacher in memory, which the KD term needs too"))
    if source == "on_policy" and _distillation(loaded).teacher.rollouts.engine != "vllm":
        reasons.append((f"{_TEACHER}.rollouts.memory_gib", "rollouts.engine is transformers"))
    if source != "store":
        reasons.append(
            ("losses.num_logprobs", f"it is a view of a store; {_TEACHER}.num_logprobs cuts online")
        )
    has_worker = _distillation(loaded).teacher.worker is not None  # `worker: {}` asks for one, too
    for path, reason in reasons:
        if loaded.is_changed(path) or (has_worker and path == f"{_TEACHER}.worker"):
            yield Problem(
                f"`{path}` has no effect: the source is {source}, and {reason}",
                loaded.where(path, _SOURCE),
                f"remove it, or choose another {_TEACHER}.source",
            )


def _models(loaded: LoadedConfig) -> Iterator[Problem]:
    config = loaded.config
    names = [model.name for model in resolve_kd_models(config)]
    if any(model.name == STUDENT and model.weights != "float32" for model in resolve_kd_models(config)):
        yield Problem(
            f"`{_TEACHER}.models` holds the student's own first weights otherwise than the student does",
            loaded.where(f"{_TEACHER}.models"),
            "remove `weights` from it, or name a checkpoint",
        )
    if ASSISTANT in names and not trains_assistant(config):
        yield Problem(
            f"`{_TEACHER}.models` names the assistant, and this run trains none",
            loaded.where(f"{_TEACHER}.models", "assistant", "train.sft"),
            "add `assistant` and `train.sft`, or name a checkpoint",
        )
    if TEACHER in names and config.teacher.open is None:
        yield Problem(
            "an online teacher needs open weights, and there is no `teacher.open`",
            loaded.where(_SOURCE, f"{_TEACHER}.models", "teacher.open"),
            f"describe one under teacher.open, or name a checkpoint in {_TEACHER}.models",
        )


def _worker(loaded: LoadedConfig) -> Iterator[Problem]:
    """What a process beside the training worker can't do."""
    worker, path = _distillation(loaded).teacher.worker, f"{_TEACHER}.worker"
    if worker is None:
        return
    fix = f"remove `{path}`, so that the models compute in the training worker"
    if any(model.name == STUDENT for model in resolve_kd_models(loaded.config)):
        yield Problem(
            f"`{path}` can't hold the student's own first weights: they are in the training worker",
            loaded.where(path, f"{_TEACHER}.models"),
            f"{fix}, or name a checkpoint",
        )
    if loaded.config.losses.hidden is not None:
        yield Problem(
            f"`losses.hidden` follows the layers of a model in the training worker; `{path}` moves it out",
            loaded.where("losses.hidden", path),
            f"{fix}, or remove losses.hidden",
        )
    least, most = worker_range(loaded.config.training)
    if least != most:
        yield Problem(
            f"`training.num_workers` takes as many workers as there is room for, up to {most}, and leaves "
            f"none for the processes of `{path}` beside them",
            loaded.where("training.num_workers", path),
            f"give the number of workers, or {fix}",
        )
    if worker.num_gpus and loaded.config.device.type == "cpu":
        yield Problem(
            f"`{path}.num_gpus` is {worker.num_gpus:g}, and `device.type` is cpu",
            loaded.where(f"{path}.num_gpus", "device.type"),
            f"set {path}.num_gpus: 0, or device.type: auto",
        )


def _rollouts(loaded: LoadedConfig) -> Iterator[Problem]:
    longest = _distillation(loaded).teacher.rollouts.max_new_tokens
    room = loaded.config.training.max_seq_len
    if longest >= room:
        yield Problem(
            f"`{_TEACHER}.rollouts.max_new_tokens` ({longest}) leaves no room for a prompt in "
            f"`training.max_seq_len` ({room})",
            loaded.where(f"{_TEACHER}.rollouts.max_new_tokens", "training.max_seq_len"),
            "raise max_seq_len, or lower max_new_tokens",
        )
    kl_weight, path = _kl_weight(loaded)
    if kl_weight == 0:
        yield Problem(
            f"`{path}` is 0, and rollouts are made to be judged",
            loaded.where(path, _SOURCE),
            "give the KD term a weight, or set source: store",
        )
    elif _ce_weight(loaded) > 0:
        yield Problem(
            f"the CE term has weight {_ce_weight(loaded):g}, and on_policy would give it the student's own "
            "samples as targets",
            loaded.where("losses.ce_weight", f"{_KD}.weight", _SOURCE),
            "set losses.kl_weight: 1 and losses.ce_weight: 0",
        )


def _distillation(loaded: LoadedConfig) -> DistillationSection:
    section = loaded.config.train.distillation
    assert section is not None
    return section
