"""The stages sft and distill."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.config.signal_source import learns_from_assistant, resolve_kd_models, resolve_signal_source
from raystill.config.student_init import resolve_student_init
from raystill.config.worker_range import worker_range
from raystill.run.disk import free_bytes
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult
from raystill.train.loss_terms import resolve_loss
from raystill.train.settings import (
    TrainSettings,
    TrainStageName,
    resolve_settings,
    starts_from_sft,
    trained_model,
)

_SHARED_KEYS = (
    "run.seed",
    "device.type",
    "cuda.allow_tf32",
    "teacher.open.model.name",
    "teacher.open.model.revision",
    "teacher.base.cut_off",
    "training.steps",
    "training.warmup_ratio",
    "training.lr_schedule",
    "training.min_lr_ratio",
    "training.weight_decay",
    "training.adam_beta1",
    "training.adam_beta2",
    "training.max_grad_norm",
    "training.max_seq_len",
    "training.packing",
    "training.spike_threshold",
    "training.max_spike_steps",
    "curriculum",
)
_STUDENT_KEYS = tuple(
    f"student.{name}"
    for name in (
        "base_model_name",
        "init",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "vocab_size",
        "rope_theta",
        "initializer_range",
        "tie_word_embeddings",
        "tokenizer",
        "adapter",
        "head_dim",
        "additional_special_tokens",
    )
)
_ASSISTANT_KEYS = (
    "assistant.model.name",
    "assistant.model.attn_implementation",
    "assistant.model.bfloat16",
    "assistant.lora",
    "assistant.quantization",
    "assistant.tokenizer.additional_special_tokens",
)
_COMMON = (
    "steps",
    "num_train_epochs",
    "learning_rate",
    "peft",
)
_SFT_KEYS = tuple(
    f"train.sft.{name}"
    for name in (
        *_COMMON,
        "bfloat16",
        "fp16",
        "loss_on",
        "eval_strategy",
        "dataset.seed",
        "dataset.test_size",
        "tokenizer.truncation",
        "tokenizer.max_length",
    )
)
_DISTILL_KEYS = tuple(
    f"train.distillation.{name}"
    for name in (
        *_COMMON,
        "bf16",
        "fp16",
        "evaluation_strategy",
        "init",
        "seed",
        "test_size",
        "knowledgedistillation",
        "teacher",
    )
)


def _sft_inputs(config: Config) -> tuple[StageName, ...]:
    return ("generate",) if config.curate is None else ("generate", "curate")


def _distill_inputs(config: Config) -> tuple[StageName, ...]:
    inputs: list[StageName] = ["generate"]
    from_store = resolve_signal_source(config) == "store" and resolve_loss(config).uses_teacher
    if from_store and config.teacher.signals.capture != "generation":
        inputs.append("score")
    if config.curate is not None:
        inputs.append("curate")
    if starts_from_sft(config) or learns_from_assistant(config):
        inputs.append("sft")
    return tuple(inputs)


def _starts_from_this_run(config: Config, stage: TrainStageName) -> bool:
    return stage == "distill" and starts_from_sft(config)


def _require_possible(config: Config, stage: TrainStageName) -> TrainSettings:
    """Refuse what no answer of a teacher can make right; returns the stage's settings."""
    from raystill.train.build import require_described
    from raystill.train.output import validate_copy_target
    from raystill.train.rollouts.vllm_engine import require_vllm
    from raystill.train.students.base import refuse_pickle
    from raystill.train.students.quantize import require_bitsandbytes
    from raystill.train.trackers import require_tracker

    settings = resolve_settings(config, stage)
    if trained_model(config, stage) == "student" and not _starts_from_this_run(config, stage):
        require_described(config)
        if config.student.base_model_name is not None:
            refuse_pickle(config.student.base_model_name)
    quantization = config.assistant.quantization if config.assistant else None
    if stage == "sft" and quantization is not None and quantization.load_in_4bit:
        require_bitsandbytes()
    online = resolve_kd_models(config) if stage == "distill" and settings.source != "store" else ()
    if any(model.weights == "4bit" for model in online):
        require_bitsandbytes("train.distillation.teacher.models")
    if settings.source == "on_policy":
        assert config.train.distillation is not None
        if config.train.distillation.teacher.rollouts.engine == "vllm":
            require_vllm()
    require_tracker(settings.report_to, f"train.{'sft' if stage == 'sft' else 'distillation'}.report_to")
    if settings.copy_to is not None:
        validate_copy_target(settings.copy_to, overwrite=settings.overwrite_copy)
    return settings


def _foresee(config: Config, paths: RunPaths, stage: TrainStageName) -> None:
    """Refuse, before a teacher is asked, what can be seen without the output of the stages before."""
    from raystill.checkpoint.copies import require_reachable
    from raystill.train.build import load_student_chat
    from raystill.train.outline import first_stage, require_fitting
    from raystill.train.teachers.load import foresee_teachers, require_same_tokens
    from raystill.train.token_match import foresee_tokens

    settings = _require_possible(config, stage)
    require_reachable(paths.checkpoint_copies(stage))
    chat = load_student_chat(config, paths, first_stage(config, paths, stage))
    require_fitting(config, paths, settings, chat)
    if settings.reads_stored_signals:
        if load_manifest(paths.stage_dir("generate")) is None:
            foresee_tokens(config, chat)
    elif settings.terms.uses_teacher:
        require_same_tokens(foresee_teachers(config, paths), chat)


def _preflight(config: Config, paths: RunPaths, stage: TrainStageName) -> None:
    """Refuse, before anything is written, what training could only fail on later."""
    from raystill.store.own_answers import require_own_answers
    from raystill.store.store import load_store
    from raystill.train.build import load_student_chat
    from raystill.train.token_match import match_tokenizers

    _foresee(config, paths, stage)
    store = load_store(paths.store)
    chat = load_student_chat(config, paths, stage)
    match_tokenizers(config, store, chat, resolve_settings(config, stage).reads_stored_signals)
    require_own_answers(store, paths.requests, load_manifest(paths.stage_dir("generate")))


def _run(context: StageContext, stage: TrainStageName) -> StageResult:
    from raystill.train.launch import run_training
    from raystill.train.output import copy_model
    from raystill.train.row_lengths import measure_stored

    settings = resolve_settings(context.config, stage)
    said = measure_stored(context.config, context.paths, settings).describe_loss()
    for note in said:
        context.events.emit("warning", message=note)
    _warn_of_size(context, stage)
    started = time.monotonic()

    def show(record: dict[str, Any]) -> None:
        free_gb = round(free_bytes(context.paths.root) / 2**30, 1)
        context.events.emit("progress", **progress_fields(record), disk_free_gb=free_gb)

    summary = run_training(context.config, context.paths, stage, show)
    seconds = time.monotonic() - started
    for note in summary["notes"]:
        if note not in said:
            context.events.emit("warning", message=note)
    model = context.paths.model(stage)
    if settings.copy_to is not None:
        copy_model(model, settings.copy_to, overwrite=settings.overwrite_copy)
    return StageResult(
        counts=summary["counts"],
        metrics=summary["metrics"] | {"train_seconds": round(seconds, 3)},
        files=sorted(path for path in model.rglob("*") if path.is_file()),
    )


def _warn_of_size(context: StageContext, stage: TrainStageName) -> None:
    """Say it, before the first step, where the model that is going to train is larger than a local teacher:
    rarely meant."""
    from raystill.train.build import load_student_chat
    from raystill.train.outline import outline_model

    config, paths = context.config, context.paths
    if config.teacher.open is None:
        return
    name = config.teacher.open.model.name
    is_student = trained_model(config, stage) == "student"
    own = config.student.base_model_name if resolve_student_init(config.student) == "base" else None
    if is_student and own == name:
        context.events.emit("warning", message=f"the student starts from its teacher's own weights ({name})")
    teacher = _count_saved(Path(name).expanduser())
    outline = outline_model(config, paths, stage, load_student_chat(config, paths, stage))
    parameters = 0 if outline is None else sum(parameter.numel() for parameter in outline.parameters())
    if 0 < teacher < parameters:
        who = "student" if is_student else "assistant"
        text = f"the {who} ({parameters:,} parameters) is larger than its teacher ({teacher:,})"
        context.events.emit("warning", message=text)


def _count_saved(directory: Path) -> int:
    """Numbers in the safetensors files of `directory`."""
    from safetensors import safe_open

    count = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="np") as tensors:
            count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def progress_fields(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as the fields of a progress event: a few to be shown, and `measured`, which has
    everything but shares of time by its own name."""
    names = {
        "train/loss": "loss",
        "train/kd_kl": "kd_kl",
        "eval/loss": "eval_loss",
        "train/tok_s_useful": "tokens_per_s",
        "train/mfu": "mfu",
    }
    shown = {name: round(record[key], 4) for key, name in names.items() if key in record}
    total = {"total": record["total_steps"]} if "total_steps" in record else {}
    measured = {
        key: float(f"{value:.6g}")
        for key, value in record.items()
        if "/" in key and not key.startswith("time/") and isinstance(value, int | float)
    }
    return {"done": record["step"], "unit": "steps", **total, **shown, "measured": measured}


def _run_sft(context: StageContext) -> StageResult:
    return _run(context, "sft")


def _run_distill(context: StageContext) -> StageResult:
    return _run(context, "distill")


def _check_sft(config: Config, paths: RunPaths) -> None:
    _preflight(config, paths, "sft")


def _check_distill(config: Config, paths: RunPaths) -> None:
    _preflight(config, paths, "distill")


def _discard_sft(config: Config, paths: RunPaths) -> None:
    _discard_copies(paths, "sft")


def _discard_distill(config: Config, paths: RunPaths) -> None:
    _discard_copies(paths, "distill")


def _discard_copies(paths: RunPaths, stage: TrainStageName) -> None:
    from raystill.checkpoint.copies import copies_of

    copies = copies_of(paths, stage)
    if copies is not None:
        copies.discard()


def _foresee_sft(config: Config, paths: RunPaths) -> None:
    _foresee(config, paths, "sft")


def _foresee_distill(config: Config, paths: RunPaths) -> None:
    _foresee(config, paths, "distill")


def _rows_per_step(config: Config, stage: TrainStageName) -> dict[str, Any]:
    """How many workers share the rows of a step, and how they cut them, changes the result by rounding only:
    a run whose machine has changed goes on with other numbers of the same product."""
    section = config.train.sft if stage == "sft" else config.train.distillation
    rows = None
    if section is not None:
        rows = section.per_device_train_batch_size * section.gradient_accumulation_steps
        rows *= worker_range(config.training)[1]
    return {"num_workers x per_device_train_batch_size x gradient_accumulation_steps": rows}


SFT_STAGE = Stage(
    name="sft",
    config_keys=(*_SHARED_KEYS, *_STUDENT_KEYS, *_ASSISTANT_KEYS, *_SFT_KEYS),
    inputs=_sft_inputs,
    body=_run_sft,
    needs_ray=True,
    preflight=_check_sft,
    foresee=_foresee_sft,
    discard=_discard_sft,
    derived=lambda config: _rows_per_step(config, "sft"),
)
DISTILL_STAGE = Stage(
    name="distill",
    config_keys=(*_SHARED_KEYS, *_STUDENT_KEYS, *_DISTILL_KEYS, "losses"),
    inputs=_distill_inputs,
    body=_run_distill,
    needs_ray=True,
    preflight=_check_distill,
    foresee=_foresee_distill,
    discard=_discard_distill,
    derived=lambda config: _rows_per_step(config, "distill"),
)
