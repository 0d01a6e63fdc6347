"""Building the model of a training stage from the configuration: base, fresh, after SFT, with LoRA."""

from __future__ import annotations

from typing import Any

import torch

from raystill.config.schema import Config
from raystill.config.student_init import ARCHITECTURE_KEYS, StudentInit, resolve_student_init
from raystill.errors import ConfigError
from raystill.run.paths import RunPaths
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.tokenizer import ensure_pad_token
from raystill.text.tool_schema import offer_tools
from raystill.train.settings import (
    TrainSettings,
    TrainStageName,
    added_tokens,
    starts_from_sft,
    trained_model,
)
from raystill.train.student import Student, validate_head
from raystill.train.students.base import load_base_student, load_causal_lm, merge_adapter
from raystill.train.students.fresh import build_fresh
from raystill.train.students.lora import attach_lora
from raystill.train.students.quantize import is_quantized, load_in_4bit
from raystill.train.students.shrink import build_shrunk
from raystill.train.students.special_tokens import add_special_tokens, new_token_ids, widen_embeddings


def load_student_chat(config: Config, paths: RunPaths, stage: TrainStageName) -> ChatFormat:
    """The tokenizer and chat template of the model that the stage trains.

    The SFT model's where distill starts from it; else the assistant's; else `student.tokenizer`, the base
    model's or the teacher's; with the tokens that are to be added. Offers the tools that the teacher was
    offered, where its template takes tools. Raises ConfigError if none of them is given.
    """
    chat = add_special_tokens(_own_chat(config, paths, stage), added_tokens(config, stage))
    return offer_tools(chat, config.teacher.base.tool_schema)


def _own_chat(config: Config, paths: RunPaths, stage: TrainStageName) -> ChatFormat:
    if stage == "distill" and starts_from_sft(config):
        return load_chat_format(str(paths.model("sft").resolve()))
    if trained_model(config, stage) == "assistant":
        assert config.assistant is not None
        return load_chat_format(config.assistant.model.name)
    student = config.student
    own = student.tokenizer or student.base_model_name
    if own is not None:
        return load_chat_format(own)
    if config.teacher.open is None:
        raise ConfigError(
            "a fresh student of a closed teacher needs a tokenizer",
            where="student.tokenizer",
            fix="set it to a directory with tokenizer.json, or set student.base_model_name",
        )
    model = config.teacher.open.model
    return load_chat_format(
        model.name, model.revision, model.trust_remote_code, config.teacher.open.tokenizer.use_fast
    )


def build_model(
    config: Config,
    paths: RunPaths,
    settings: TrainSettings,
    chat: ChatFormat,
    device: torch.device,
    notes: list[str],
) -> Any:
    """The transformers model that a stage starts from: float32 weights on `device`.

    `notes` gets what the user should hear about. Raises ConfigError for contradictory keys, DataError or
    RemoteError for a base that can't be loaded.
    """
    torch.manual_seed(settings.seed)
    attention = _attention(config, settings.stage, device, notes)
    model = _load_or_make(config, paths, settings.stage, chat, attention, device)
    _add_token_rows(model, config, paths, settings.stage, chat, notes)
    _set_special_tokens(model, chat, notes)
    return model if is_quantized(model) else model.to(device)


def build_student(model: Any, settings: TrainSettings) -> Student:
    """`model` ready to train, in full or with LoRA. Raises ConfigError if it can't train as asked."""
    torch.manual_seed(settings.seed)
    network = model if settings.lora is None else attach_lora(model, settings.lora, lora_key(settings.stage))
    if settings.gradient_checkpointing:
        # The reentrant kind needs an input that requires a gradient, and frozen embeddings give none.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network.train()
    student = Student(model, network)
    validate_head(student)
    return student


def lora_key(stage: TrainStageName) -> str:
    """The path of a stage's LoRA keys."""
    return "train.sft.peft.lora" if stage == "sft" else "train.distillation.peft.lora"


def require_described(config: Config) -> StudentInit:
    """Where the student's weights come from. Raises ConfigError where the keys describe no student."""
    student = config.student
    init = resolve_student_init(student)
    if init is None or (init != "fresh" and student.base_model_name is None):
        raise ConfigError(
            "the student is not described",
            where="student",
            fix="set student.base_model_name, or the architecture keys for a fresh one: "
            + ", ".join(ARCHITECTURE_KEYS),
        )
    return init


def _load_or_make(
    config: Config,
    paths: RunPaths,
    stage: TrainStageName,
    chat: ChatFormat,
    attention: str,
    device: torch.device,
) -> Any:
    if stage == "distill" and starts_from_sft(config):
        return load_causal_lm(str(paths.model("sft").resolve()), attention)
    if trained_model(config, stage) == "assistant":
        return _load_assistant(config, attention, device)
    student, init = config.student, require_described(config)
    if init == "fresh":
        return build_fresh(student, chat, attention)
    assert student.base_model_name is not None
    if init == "base":
        model = load_base_student(student, attention)
        return model if student.adapter is None else merge_adapter(model, student.adapter)
    base = load_causal_lm(student.base_model_name, attention)
    if student.adapter is not None:
        base = merge_adapter(base, student.adapter)
    return build_shrunk(base, student, attention)


def _load_assistant(config: Config, attention: str, device: torch.device) -> Any:
    assert config.assistant is not None
    model, quantization = config.assistant.model, config.assistant.quantization
    if quantization is not None and quantization.load_in_4bit:
        return load_in_4bit(model.name, quantization, device, attention, model.save_path)
    return load_causal_lm(model.name, attention, model.save_path)


def _add_token_rows(
    model: Any, config: Config, paths: RunPaths, stage: TrainStageName, chat: ChatFormat, notes: list[str]
) -> None:
    """Rows for the tokens that the base didn't know; a fresh student has random rows for all alike."""
    is_fresh = trained_model(config, stage) == "student" and resolve_student_init(config.student) == "fresh"
    if not added_tokens(config, stage) or is_fresh:
        return
    before = _own_chat(config, paths, stage)
    new_ids = new_token_ids(before, chat)
    if new_ids:
        widen_embeddings(model, new_ids, len(before.tokenizer))
        notes.append(f"{len(new_ids)} tokens were added, each starting as the mean of the others")


def _attention(config: Config, stage: TrainStageName, device: torch.device, notes: list[str]) -> str:
    """The attention implementation; flash_attention_2 falls back to sdpa where it can't run, said once."""
    if trained_model(config, stage) != "assistant" or config.assistant is None:
        return "sdpa"
    wanted = config.assistant.model.attn_implementation
    if wanted != "flash_attention_2":
        return wanted
    from transformers.utils import is_flash_attn_2_available

    if device.type == "cuda" and is_flash_attn_2_available():
        return wanted
    notes.append("flash_attention_2 is not available here; sdpa takes its place")
    return "sdpa"


def _set_special_tokens(model: Any, chat: ChatFormat, notes: list[str]) -> None:
    """Make the model stop where the teacher's completions stop, and pad with something that isn't an EOS."""
    from transformers import GenerationConfig

    end = chat.turn_end_id
    eos_ids = [end, *[token_id for token_id in chat.eos_token_ids if token_id != end]]
    pad = ensure_pad_token(chat.tokenizer, chat.eos_token_ids, eos_would_be_masked=False)
    if pad.note:
        notes.append(pad.note)
    model.config.eos_token_id = eos_ids[0]
    model.config.pad_token_id = pad.id
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        eos_token_id=eos_ids if len(eos_ids) > 1 else eos_ids[0],
        pad_token_id=pad.id,
        bos_token_id=chat.tokenizer.bos_token_id,
        do_sample=False,
    )
