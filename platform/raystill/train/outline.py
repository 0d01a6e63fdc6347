"""The model that a stage is going to train, without its weights: enough to refuse what doesn't fit it.

Shapes and names follow from config.json, the configuration's own keys and the header of an adapter's file, so
what is wrong with them is seen before a teacher is asked rather than when a worker builds the model.
"""

from __future__ import annotations

from typing import Any

import torch

from raystill.config.schema import Config
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths
from raystill.text.chat import ChatFormat
from raystill.train.build import lora_key, require_described
from raystill.train.settings import TrainSettings, TrainStageName, starts_from_sft, trained_model
from raystill.train.students.base import (
    attach_adapter,
    limit_context,
    load_model_config,
    refuse_other_architecture,
)
from raystill.train.students.fresh import fresh_config
from raystill.train.students.lora import validate_lora
from raystill.train.students.shrink import shrunk_config


def first_stage(config: Config, paths: RunPaths, stage: TrainStageName) -> TrainStageName:
    """The stage whose model is where `stage` starts, as far as it is there: sft's configuration describes the
    model that distill goes on with until sft has left one behind."""
    is_chained = stage == "distill" and starts_from_sft(config)
    return "sft" if is_chained and load_manifest(paths.stage_dir("sft")) is None else stage


def require_fitting(config: Config, paths: RunPaths, settings: TrainSettings, chat: ChatFormat) -> None:
    """Refuse keys and adapters that don't fit the model which `settings.stage` is going to train.

    `chat` is that of `first_stage`. Raises ConfigError for a student of another shape than its base, for one
    that can't be cut or built, and for LoRA targets and ranks that the model hasn't got; DataError for a
    config that can't be read and an adapter of another base, RemoteError for a hub id that can't be fetched.
    """
    model = outline_model(config, paths, settings.stage, chat)
    if settings.lora is not None and model is not None:
        validate_lora(model, settings.lora, lora_key(settings.stage))


def outline_model(config: Config, paths: RunPaths, stage: TrainStageName, chat: ChatFormat) -> Any:
    """The transformers model that a stage starts from, on the meta device. Raises as `require_fitting`.

    None for an architecture that can't be built there: loading decides about it.
    """
    if stage == "distill" and starts_from_sft(config):
        if first_stage(config, paths, stage) == "distill":
            return _empty(load_model_config(str(paths.model("sft").resolve())))
        return outline_model(config, paths, "sft", chat)
    if trained_model(config, stage) == "assistant":
        assert config.assistant is not None
        return _empty(load_model_config(config.assistant.model.name, config.assistant.model.save_path))
    student, init = config.student, require_described(config)
    if init == "fresh":
        return _empty(fresh_config(student, chat))
    assert student.base_model_name is not None
    base = load_model_config(student.base_model_name)
    if init == "base":
        refuse_other_architecture(student, base.get_text_config())
        limit_context(base.get_text_config(), student)
    if student.adapter is not None and (model := _empty(base)) is not None:
        attach_adapter(model, student.adapter, low_cpu_mem_usage=True)
    return _empty(shrunk_config(base, student) if init == "shrink" else base)


def _empty(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    except (ImportError, RuntimeError, ValueError):
        return None
