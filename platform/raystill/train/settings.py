"""What a training stage was asked to do, resolved once from the configuration. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raystill.config.general import Parallelism
from raystill.config.models import AssistantLora
from raystill.config.schema import Config
from raystill.config.signal_source import SignalSourceName, resolve_signal_source
from raystill.config.training import (
    DistillationSection,
    EvalStrategy,
    Experiment,
    LoraSection,
    ReportTo,
    SftSection,
)
from raystill.config.worker_range import worker_range
from raystill.errors import ConfigError
from raystill.losses.schedules import ScheduledTerms
from raystill.train.curriculum import Curriculum
from raystill.train.loss_terms import resolve_loss

TrainStageName = Literal["sft", "distill"]
Precision = Literal["float32", "bfloat16", "float16"]

_EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class TrainSettings:
    """One training stage.

    `steps` unset means `epochs` decide; `num_logprobs` is a view of the stored K; `prefers_bfloat16` asks for
    bfloat16 where the device has it. `packed` is what `packing` comes to on this model (`attention`).
    """

    stage: TrainStageName
    label: str
    terms: ScheduledTerms
    balance: bool
    source: SignalSourceName
    signal_kind: Literal["topk", "sampled", "hidden"]
    num_logprobs: int | None
    source_weights: Mapping[str, float]
    lora: LoraSection | None
    precision: Precision
    prefers_bfloat16: bool
    steps: int | None
    epochs: int
    micro_batch_rows: int
    accumulation: int
    num_workers: int
    parallelism: Parallelism
    gradient_checkpointing: bool
    learning_rate: float
    warmup_ratio: float
    schedule: Literal["cosine", "linear", "constant"]
    min_lr_ratio: float
    weight_decay: float
    betas: tuple[float, float]
    max_grad_norm: float
    log_every: int
    save_every: int
    max_nonfinite_steps: int
    spike_threshold: float
    max_spike_steps: int
    eval_strategy: EvalStrategy
    test_size: float
    data_seed: int
    seed: int
    max_seq_len: int
    truncate: bool
    loss_on: Literal["completion", "assistant"]
    packing: Literal["auto", "on", "off"]
    packed: bool
    curriculum: Curriculum
    copy_to: Path | None
    overwrite_copy: bool
    report_to: ReportTo
    experiment: Experiment | None

    @property
    def reads_stored_signals(self) -> bool:
        """Whether the KD term takes its distributions from the store."""
        return self.terms.uses_teacher and self.source == "store"

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


def added_tokens(config: Config, stage: TrainStageName) -> list[str]:
    """Special tokens that a stage's tokenizer gets; none where distill goes on with the SFT stage's."""
    if trained_model(config, stage) == "assistant":
        assert config.assistant is not None
        return config.assistant.tokenizer.additional_special_tokens
    return [] if stage == "distill" and starts_from_sft(config) else config.student.additional_special_tokens


def resolve_settings(config: Config, stage: TrainStageName) -> TrainSettings:
    """Everything a training stage needs to know. Raises ConfigError for contradictions."""
    section = _section(config, stage)
    own = _sft_settings(section) if isinstance(section, SftSection) else _distill_settings(section)
    training = config.training
    return TrainSettings(
        stage=stage,
        label=own.label,
        terms=ScheduledTerms() if stage == "sft" else resolve_loss(config),
        balance=stage == "distill" and config.losses.balance,
        source="store" if stage == "sft" else resolve_signal_source(config),
        signal_kind=config.teacher.signals.kind,
        num_logprobs=None if stage == "sft" else config.losses.num_logprobs,
        source_weights={} if stage == "sft" else config.losses.source_weights,
        lora=_resolve_lora(config, stage),
        precision=_precision(own),
        prefers_bfloat16=trained_model(config, stage) == "assistant"
        and config.assistant is not None
        and config.assistant.model.bfloat16,
        steps=section.steps or training.steps,
        epochs=section.num_train_epochs,
        micro_batch_rows=section.per_device_train_batch_size,
        accumulation=section.gradient_accumulation_steps,
        num_workers=worker_range(training)[1],
        parallelism=training.parallelism,
        gradient_checkpointing=training.gradient_checkpointing,
        learning_rate=section.learning_rate,
        warmup_ratio=training.warmup_ratio,
        schedule=training.lr_schedule,
        min_lr_ratio=training.min_lr_ratio,
        weight_decay=training.weight_decay,
        betas=(training.adam_beta1, training.adam_beta2),
        max_grad_norm=training.max_grad_norm,
        log_every=section.logging_steps or training.log_every,
        save_every=section.save_steps or training.save_every,
        max_nonfinite_steps=training.max_nonfinite_steps,
        spike_threshold=training.spike_threshold,
        max_spike_steps=training.max_spike_steps,
        eval_strategy=own.eval_strategy,
        test_size=own.test_size,
        data_seed=own.data_seed,
        seed=config.run.seed,
        max_seq_len=own.max_length or training.max_seq_len,
        truncate=own.truncate,
        loss_on=own.loss_on,
        packing=training.packing,
        packed=False,
        curriculum=_resolve_curriculum(config),
        copy_to=Path(own.copy_to).expanduser() if own.copy_to else None,
        overwrite_copy=section.overwrite_output_dir,
        report_to=section.report_to,
        experiment=section.experiment,
    )


def _resolve_curriculum(config: Config) -> Curriculum:
    section = config.curriculum
    if section is None:
        return Curriculum()
    return Curriculum(tuple(section.seq_lengths), tuple(section.schedule), section.mix, section.mix_end)


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
    loss_on: Literal["completion", "assistant"] = "completion"


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
        loss_on=section.loss_on,
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
    """The adapters of a stage. With new tokens the embeddings train beside them: nothing else would learn
    what the tokens mean."""
    lora = _given_lora(config, stage)
    if lora is None or not added_tokens(config, stage):
        return lora
    missing = [name for name in _EMBEDDINGS if name not in lora.modules_to_save]
    return lora.model_copy(update={"modules_to_save": [*lora.modules_to_save, *missing]})


def _given_lora(config: Config, stage: TrainStageName) -> LoraSection | None:
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
