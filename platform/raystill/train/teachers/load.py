"""Which models teach online, whether their tokens are the student's, and how they are loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from raystill.config.kd_teacher import ASSISTANT, STUDENT, TEACHER, KdModel
from raystill.config.models import Quantization
from raystill.config.schema import Config
from raystill.config.signal_source import resolve_kd_models
from raystill.errors import ConfigError, DataError
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import compare_tokenizers, load_tokenizer, tokenizer_sha256
from raystill.train.attention import enable_packing
from raystill.train.student import Student, validate_head
from raystill.train.students.base import load_causal_lm, load_model_config
from raystill.train.students.quantize import load_in_4bit
from raystill.train.teachers.frozen import AdapterOffTeacher, CheckpointTeacher, FrozenModel
from raystill.train.teachers.panel import OnlineTeacher

_WHERE = "train.distillation.teacher.models"


@dataclass(frozen=True)
class TeacherPlace:
    """Where a configured online teacher is; `source` is None where it is the student's own first weights."""

    model: KdModel
    source: str | None
    revision: str | None = None
    trust_remote_code: bool = False
    quantization: Quantization | None = None

    def options(self) -> dict[str, Any]:
        """What transformers' from_pretrained is told besides the source."""
        options: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        return options | ({"trust_remote_code": True} if self.trust_remote_code else {})


def locate_teachers(config: Config, paths: RunPaths) -> list[TeacherPlace]:
    """The configured online teachers. Raises ConfigError for a word that this run has no model for."""
    found = [_locate(config, paths, model) for model in resolve_kd_models(config)]
    given = config.assistant.quantization if config.assistant else None
    given = given or Quantization(load_in_4bit=True)
    return [replace(place, quantization=given) if place.model.weights == "4bit" else place for place in found]


def foresee_teachers(config: Config, paths: RunPaths) -> list[TeacherPlace]:
    """The online teachers as far as they are there: the assistant as it is before sft trains it, until then.
    Raises as `locate_teachers`."""
    places = locate_teachers(config, paths)
    if config.assistant is None or load_manifest(paths.stage_dir("sft")) is not None:
        return places
    base = config.assistant.model.name
    return [replace(place, source=base) if place.model.name == ASSISTANT else place for place in places]


def _locate(config: Config, paths: RunPaths, model: KdModel) -> TeacherPlace:
    if model.name == STUDENT:
        return TeacherPlace(model, None)
    if model.name == ASSISTANT:
        if config.train.sft is None or config.assistant is None:
            raise ConfigError(
                "the assistant is to teach, and this run trains none",
                where=_WHERE,
                fix="add `assistant` and `train.sft`, or name a checkpoint",
            )
        return TeacherPlace(model, str(paths.model("sft").resolve()))
    if model.name != TEACHER:
        return TeacherPlace(model, model.name)
    if config.teacher.open is None:
        raise ConfigError(
            "an online teacher needs open weights, and there is no teacher.open",
            where=_WHERE,
            fix="describe one under teacher.open, name a checkpoint, or use source: store with a scorer",
        )
    own = config.teacher.open.model
    return TeacherPlace(model, own.name, own.revision, own.trust_remote_code)


def require_same_tokens(places: Sequence[TeacherPlace], chat: ChatFormat) -> None:
    """Raise DataError, with examples, if an online teacher's ids mean other tokens than the student's.

    Extra entries on one side (a padded vocabulary) are accepted.
    """
    for place in places:
        if place.source is None:
            continue
        tokenizer = load_tokenizer(place.source, place.revision, place.trust_remote_code)
        if tokenizer_sha256(tokenizer) == tokenizer_sha256(chat.tokenizer):
            continue
        comparison = compare_tokenizers(tokenizer, chat.tokenizer)
        if not comparison.compatible:
            raise DataError(
                f"{place.model.name} can't teach this student token by token: {comparison.describe()}",
                where=f"{_WHERE}, student.tokenizer",
                fix="give the student that model's tokenizer, or train on text alone: losses.kl_weight: 0",
            )


def require_context(places: Sequence[TeacherPlace], longest: int) -> None:
    """Raise ConfigError if an online teacher hasn't learnt as many positions as the longest row has tokens.

    What it says beyond them would be noise. Raises DataError or RemoteError for a config that can't be read.
    """
    for place in places:
        if place.source is None:
            continue
        model = load_model_config(place.source, **place.options()).get_text_config()
        context = int(getattr(model, "max_position_embeddings", 0) or 0)
        if 0 < context < longest:
            raise ConfigError(
                f"{place.model.name} has learnt {context} positions and is to judge rows of {longest} tokens",
                where=f"{_WHERE}, training.max_seq_len",
                fix=f"set training.max_seq_len to {context} or less, or let another model teach",
            )


def load_teachers(places: Sequence[TeacherPlace], student: Student, *, packed: bool) -> list[OnlineTeacher]:
    """The models of `places`, frozen, where the student is, which has its first weights still.

    `packed` makes them keep apart the rows of a packed sequence. Raises DataError or RemoteError for a model
    that can't be loaded, ConfigError for one whose logits the loss can't follow, or that can't be packed.
    """
    return [_load(place, student, packed) for place in places]


def load_checkpoints(
    places: Sequence[TeacherPlace], device: torch.device, *, packed: bool
) -> list[OnlineTeacher]:
    """The models of `places`, which are checkpoints all, frozen, on `device`. Raises as `load_teachers`."""
    return [_load_checkpoint(place, device, packed) for place in places]


def _load(place: TeacherPlace, student: Student, packed: bool) -> OnlineTeacher:
    if place.source is not None:
        return _load_checkpoint(place, student.device, packed)
    if student.is_adapted:
        return _named(place, AdapterOffTeacher(student))
    return _named(place, _freeze(copy.deepcopy(student.causal_lm), packed))


def _load_checkpoint(place: TeacherPlace, device: torch.device, packed: bool) -> OnlineTeacher:
    assert place.source is not None
    options = place.options()
    if place.quantization is not None:
        causal_lm = load_in_4bit(place.source, place.quantization, device, "sdpa", where=_WHERE, **options)
    else:
        causal_lm = load_causal_lm(place.source, "sdpa", **options)
        causal_lm.to(device, torch.bfloat16 if place.model.weights == "bfloat16" else torch.float32)
    return _named(place, _freeze(causal_lm, packed))


def _freeze(causal_lm: Any, packed: bool) -> CheckpointTeacher:
    validate_head(Student(causal_lm, causal_lm))
    if packed:
        enable_packing(causal_lm)
    return CheckpointTeacher(causal_lm)


def _named(place: TeacherPlace, model: FrozenModel) -> OnlineTeacher:
    chosen = place.model
    return OnlineTeacher(chosen.name, model, chosen.weight, frozenset(chosen.sources))
