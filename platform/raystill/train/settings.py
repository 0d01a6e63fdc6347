"""What a training stage was asked to do, resolved once from the configuration. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raystill.config.models import AssistantLora
from raystill.config.schema import Config
from raystill.config.training import DistillationSection, EvalStrategy, LoraSection, SftSection
from raystill.errors import ConfigError
from raystill.losses.terms import LossTerms

TrainStageName = Literal["sft", "distill"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TrainSettings:
    """One training stage.

    `steps` unset means `epochs` decide; `num_logprobs` is a view of the stored K; `prefers_bfloat16` asks for
    bfloat16 where the device has it.
    """

    stage: TrainStageName
    label: str
    terms: LossTerms
    num_logprobs: int | None
    lora: LoraSection | None
    precision: Precision
    prefers_bfloat16: bool
    steps: int | None
    epochs: int
    micro_batch_rows: int
    accumulation: int
    num_workers: int
    learning_rate: float
    warmup_ratio: float
    schedule: Literal["cosine", "linear", "constant"]
    min_lr_ratio: float
    weight_decay: float
    max_grad_norm: float
    log_every: int
    save_every: int
    max_checkpoints: int
    min_free_space_gb: float
    max_nonfinite_steps: int
    eval_strategy: EvalStrategy
    test_size: float
    data_seed: int
    seed: int
    max_seq_len: int
    truncate: bool
    copy_to: Path | None
    overwrite_copy: bool

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step, over all micro-batches and workers."""
        return self.micro_batch_rows * self.accumulation * self.num_workers

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps over a training set of `num_rows`."""
        return self.steps or self.epochs * math.ceil(num_rows / self.rows_per_step)


def trained_model(config: Config, stage: TrainStageName) -> Literal["assistant", "student"]:
    """Which model a stage trains: sft trains the assistant where there is one."""
    return "assistant" if stage == "sft" and config.assistant is not None else "student"


def starts_from_sft(config: Config) -> bool:
    """Whether distill starts from the SFT stage's model.

    `auto` does where that stage trained the student. Raises ConfigError for `sft` without that stage.
    """
    section = config.train.distillation
    init = section.init if section else "auto"
    if init == "sft" and config.train.sft is None:
        raise ConfigError(
            "distillation is to start from the SFT model, and there is no SFT stage",
            where="train.distillation.init",
            fix="add train.sft, or set train.distillation.init to student",
        )
    if init == "auto":
        return config.train.sft is not None and trained_model(config, "sft") == "student"
    return init == "sft"


def resolve_loss(config: Config) -> LossTerms:
    """The terms of the distillation loss.

    losses.kl_weight and losses.ce_weight where given, else knowledgedistillation.weight w as kl = w and
    ce = 1 - w; the temperature likewise. Raises ConfigError for weights that train nothing, for a reduction
    that isn't per token, and for a KD term without stored logprobs.
    """
    losses = config.losses
    distillation = config.train.distillation or DistillationSection()
    kd = distillation.knowledgedistillation
    if kd.loss.reduction not in ("batchmean", "mean"):
        raise ConfigError(
            f"reduction {kd.loss.reduction} would make the step size depend on the batch",
            where="train.distillation.knowledgedistillation.loss.reduction",
            fix="use batchmean: the mean over completion tokens",
        )
    terms = LossTerms(
        ce_weight=losses.ce_weight if losses.ce_weight is not None else 1.0 - kd.weight,
        kl_weight=losses.kl_weight if losses.kl_weight is not None else kd.weight,
        divergence=losses.divergence,
        kd_temperature=losses.kd_temperature if losses.kd_temperature is not None else kd.loss.temperature,
    )
    kind = config.teacher.signals.kind
    if terms.kl_weight > 0 and kind != "topk":
        raise ConfigError(
            f"training on {kind} signals is not supported yet: they can be captured, stored and read",
            where="teacher.signals.kind",
            fix="set it to topk, or losses.kl_weight to 0",
        )
    stored = config.teacher.signals.num_logprobs
    if terms.kl_weight > 0 and stored == 0:
        raise ConfigError(
            f"the KD term has weight {terms.kl_weight}, and no logprobs are stored",
            where="teacher.signals.num_logprobs",
            fix="store logprobs (20 is a good number), or set losses.kl_weight to 0",
        )
    if terms.kl_weight > 0 and losses.num_logprobs is not None and losses.num_logprobs > stored:
        raise ConfigError(
            f"losses.num_logprobs is {losses.num_logprobs}, and {stored} are stored",
            where="losses.num_logprobs",
            fix=f"use at most {stored}, or store more with teacher.signals.num_logprobs",
        )
    return terms


def resolve_settings(config: Config, stage: TrainStageName) -> TrainSettings:
    """Everything a training stage needs to know. Raises ConfigError for contradictions."""
    section = _section(config, stage)
    own = _sft_settings(section) if isinstance(section, SftSection) else _distill_settings(section)
    training = config.training
    return TrainSettings(
        stage=stage,
        label=own.label,
        terms=LossTerms() if stage == "sft" else resolve_loss(config),
        num_logprobs=None if stage == "sft" else config.losses.num_logprobs,
        lora=_resolve_lora(config, stage),
        precision=_precision(own),
        prefers_bfloat16=trained_model(config, stage) == "assistant"
        and config.assistant is not None
        and config.assistant.model.bfloat16,
        steps=section.steps or training.steps,
        epochs=section.num_train_epochs,
        micro_batch_rows=section.per_device_train_batch_size,
        accumulation=section.gradient_accumulation_steps,
        num_workers=training.num_workers,
        learning_rate=section.learning_rate,
        warmup_ratio=training.warmup_ratio,
        schedule=training.lr_schedule,
        min_lr_ratio=training.min_lr_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        log_every=section.logging_steps or training.log_every,
        save_every=section.save_steps or training.save_every,
        max_checkpoints=training.checkpoint_cleanup.max_checkpoints,
        min_free_space_gb=training.checkpoint_cleanup.min_free_space_gb,
        max_nonfinite_steps=training.max_nonfinite_steps,
        eval_strategy=own.eval_strategy,
        test_size=own.test_size,
        data_seed=own.data_seed,
        seed=config.run.seed,
        max_seq_len=own.max_length or training.max_seq_len,
        truncate=own.truncate,
        copy_to=Path(own.copy_to).expanduser() if own.copy_to else None,
        overwrite_copy=section.overwrite_output_dir,
    )


@dataclass(frozen=True)
class _Own:
    """What the two stages call by different names."""

    label: str
    copy_to: str | None
    bfloat16: bool
    bfloat16_key: str
    float16: bool
    eval_strategy: EvalStrategy
    test_size: float
    data_seed: int
    max_length: int | None = None
    truncate: bool = False


def _sft_settings(section: SftSection) -> _Own:
    return _Own(
        label=section.model_name,
        copy_to=section.save_path,
        bfloat16=section.bfloat16,
        bfloat16_key="train.sft.bfloat16",
        float16=section.fp16,
        eval_strategy=section.eval_strategy,
        test_size=section.dataset.test_size,
        data_seed=section.dataset.seed,
        max_length=section.tokenizer.max_length,
        truncate=section.tokenizer.truncation,
    )


def _distill_settings(section: DistillationSection) -> _Own:
    return _Own(
        label=section.run_name,
        copy_to=section.output_dir,
        bfloat16=section.bf16,
        bfloat16_key="train.distillation.bf16",
        float16=section.fp16,
        eval_strategy=section.evaluation_strategy,
        test_size=section.test_size,
        data_seed=section.seed,
    )


def _section(config: Config, stage: TrainStageName) -> SftSection | DistillationSection:
    section = config.train.sft if stage == "sft" else config.train.distillation
    if section is None:
        key = "train.sft" if stage == "sft" else "train.distillation"
        raise ConfigError(f"the stage {stage} has no settings", where=key, fix=f"add {key} to the config")
    return section


def _precision(own: _Own) -> Precision:
    if own.bfloat16 and own.float16:
        raise ConfigError(
            "bfloat16 and float16 autocast are both on",
            where=f"{own.bfloat16_key} and fp16 beside it",
            fix="turn one of them off",
        )
    return "bfloat16" if own.bfloat16 else "float16" if own.float16 else "float32"


def _resolve_lora(config: Config, stage: TrainStageName) -> LoraSection | None:
    section = _section(config, stage)
    if section.peft.lora is not None:
        return section.peft.lora
    if trained_model(config, stage) == "assistant" and config.assistant and config.assistant.lora:
        return _from_assistant(config.assistant.lora)
    return None


def _from_assistant(lora: AssistantLora) -> LoraSection:
    return LoraSection(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        task_type=lora.task_type,
    )
