"""What single stages need: operations, seconds, tokens and bytes, from the workload and the models' sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raystill.cluster.endpoint_cost import estimate_seconds
from raystill.cluster.judge_work import JudgeWork
from raystill.cluster.operations import generation_operations, scoring_operations, training_operations
from raystill.cluster.rates import rate_key, startup_key
from raystill.cluster.workload import Workload
from raystill.config.schema import Config
from raystill.config.training import DistillationSection, SftSection
from raystill.config.worker_range import worker_range
from raystill.run.paths import StageName
from raystill.run.state import StageState

Action = Literal["reuse", "resume", "run", "refuse"]

# Bytes on disk, measured: of a row, and of a token beside it.
PROMPT_BYTES, PROMPT_TOKEN_BYTES = 12.0, 0.7  # the prompt table
REQUEST_BYTES, JSON_BYTES = 250.0, 4.0  # the requests and teacher.jsonl
STORED_ROW_BYTES, STORED_PROMPT_BYTES, TEXT_BYTES = 80.0, 1.2, 5.0  # the store: prompts, then completions
MEASURED_ROW_BYTES, MEASURED_TOKEN_BYTES = 40.0, 2.0  # the evaluation's completions
EXAMPLE_BYTES = 6.0  # encoded for training, per completion token and logprob: float16 and int32
LOGPROB_BYTES = 0.8  # of a logprob that is stored, compressed; its id takes what the vocabulary asks for
SIGNAL_BYTES_AT_20 = 57.0  # per completion token at k = 20, where the vocabulary isn't known
NUM_MILESTONES = 6
TRAINED_BYTES = 12  # checkpoint: float32 weight and two float32 moments per trained parameter
STARTUP_SECONDS: dict[StageName, float] = {
    "prepare": 0.5, "generate": 32, "score": 32, "grade": 40, "curate": 5, "sft": 15, "distill": 15,
    "evaluate": 2, "export": 18,
}  # fmt: skip
_PREPARE_SECONDS = 1e-5  # per prompt token: reading, rendering and counting
_DECODING_SECONDS = 0.005  # of a step of a small model that answers held-out prompts
_ACTIONS: dict[str, Action] = {"complete": "reuse", "started": "resume", "absent": "run", "changed": "refuse"}


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what will happen to it and what that needs. None: unknown until earlier stages ran.

    `tokens` are those of prompts (prepare), of completions (generate, score), or trained on (sft, distill).
    """

    name: StageName
    action: Action
    work: str
    seconds: float | None
    disk_bytes: int | None
    tokens: int | None = None
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageSizing:
    """Estimates for single stages. `speed` is in floating-point operations per second."""

    config: Config
    workload: Workload
    judge: JudgeWork | None
    teacher: int | None
    vocabulary: int | None
    student: int | None
    speed: float
    machine: str
    rates: Mapping[str, float]

    def plan(self, name: StageName, state: StageState) -> PlannedStage:
        action = _ACTIONS[state.status]
        if action == "reuse" and state.manifest is not None:
            return PlannedStage(name, action, self._work(name), 0.0, 0)
        operations, disk = self._needs(name)
        seconds: float | None = None
        if operations is not None:
            startup = self.rates.get(startup_key(name, self.machine), STARTUP_SECONDS[name])
            seconds = startup + operations / (self._rate(name) or self.speed) + self._besides(name)
        if name == "generate" and self.config.teacher.base.from_store is not None:
            seconds, disk = STARTUP_SECONDS["prepare"], 0
        elif name == "generate" and self.config.teacher.closed is not None:
            seconds = estimate_seconds(self.config, self.workload)
        elif name == "grade" and self.config.grade is not None and self.config.grade.closed is not None:
            seconds = None if self.judge is None else self.judge.least_seconds
        tokens = self._tokens(name)
        return PlannedStage(name, action, self._work(name), seconds, disk, tokens, state.differences)

    def _besides(self, name: StageName) -> float:
        """Seconds of what takes time for other reasons than its operations."""
        if name == "prepare":
            return _PREPARE_SECONDS * (self.workload.prompt_tokens or 0)
        if name != "evaluate":
            return 0.0
        teacher = self.config.teacher.closed or self.config.teacher.open
        longest = self.config.evaluation.max_new_tokens
        longest = longest or (teacher.pipeline.max_new_tokens if teacher is not None else 0)
        models = 1 + len(configured_training(self.config))
        batches = -(-(self._measured_rows or 0) // self.config.evaluation.batch_size)
        return models * batches * longest * _DECODING_SECONDS

    @property
    def _measured_rows(self) -> int | None:
        """Held-out prompts that are looked at."""
        held_out, wanted = self.workload.eval_rows, self.config.evaluation.max_samples
        return None if held_out is None else min(held_out, wanted or held_out)

    def remembered(self, stages: Sequence[PlannedStage]) -> list[StageName]:
        """The stages whose time rests on an earlier run's rate."""
        return [stage.name for stage in stages if self._rate(stage.name) is not None]

    def _rate(self, name: StageName) -> float | None:
        """Operations per second of an earlier run with a model of this size on this machine."""
        parameters = self.teacher if name in ("generate", "score") else self.student
        if name not in ("generate", "score", "sft", "distill") or parameters is None:
            return None
        return self.rates.get(rate_key(name, self.machine, parameters))

    def steps(self, section: SftSection | DistillationSection | None) -> int | None:
        """Optimizer steps of a training stage."""
        if section is None:
            return None
        given = section.steps or self.config.training.steps
        rows = self.workload.train_rows
        if given is not None or rows is None:
            return given
        test_size = section.dataset.test_size if isinstance(section, SftSection) else section.test_size
        trained = rows - round(rows * test_size)
        return section.num_train_epochs * max(1, -(-trained // rows_per_step(self.config, section)))

    def _section(self, name: StageName) -> SftSection | DistillationSection | None:
        return dict(configured_training(self.config)).get(name)

    def _work(self, name: StageName) -> str:
        rows = self.workload.rows
        count = "rows counted after prepare" if rows is None else f"{rows:,} prompts"
        tokens = self.workload.completion_tokens
        stored = self.workload.requests if self.config.teacher.base.from_store is not None else None
        if name == "generate" and stored is not None:
            return f"{stored:,} stored answers, none asked for"
        if name in ("generate", "score") and tokens is not None:
            return f"{count}, {'' if self.workload.is_measured else '~'}{tokens:,} completion tokens"
        if name == "grade" and self.judge is not None:
            return self.judge.describe()
        if name in ("sft", "distill"):
            steps = self.steps(self._section(name))
            return "steps counted after prepare" if steps is None else f"{steps:,} optimizer steps"
        if name == "evaluate":
            held_out = self._measured_rows
            return "held-out prompts" if held_out is None else f"{held_out:,} held-out prompts"
        if name == "export":
            return f"merged safetensors, {self.config.export.dtype}"
        return count

    def _needs(self, name: StageName) -> tuple[float | None, int | None]:
        """Floating-point operations and bytes on disk of a stage, None where unknown."""
        tokens = self.workload.row_tokens
        match name:
            case "prepare":
                prompts, rows = self.workload.prompt_tokens, self.workload.rows
                if prompts is None or rows is None:
                    return 0.0, None
                return 0.0, int(PROMPT_TOKEN_BYTES * prompts + PROMPT_BYTES * rows)
            case "generate" | "score":
                return self._teacher_needs(name)
            case "grade":
                if self.judge is None or self.judge.tokens is None:
                    return None, None
                return self.judge.operations, int(self.judge.tokens * TEXT_BYTES)
            case "curate":
                return 0.0, 64 * (self.workload.rows or 0)
            case "sft" | "distill":
                return self._training_needs(name, tokens)
            case "evaluate":
                return self._evaluation_needs(tokens)
            case "export":
                if self.student is None:
                    return None, None
                return 0.0, self.student * (4 if self.config.export.dtype == "float32" else 2)

    def _teacher_needs(self, name: StageName) -> tuple[float | None, int | None]:
        completion, prompts = self.workload.completion_tokens, self.workload.requested_prompt_tokens
        if completion is None:
            return None, None
        count = generation_operations if name == "generate" else scoring_operations
        is_known = self.teacher is not None and prompts is not None
        operations = count(self.teacher or 0, prompts or 0.0, completion) if is_known else None
        # Signals are stored once: with the answers, or by the stage that scores them.
        is_scored = self.config.teacher.signals.capture == "score"
        signals = self._signal_bytes(completion) if is_scored == (name == "score") else 0.0
        return operations, int(signals + (self._text_bytes() if name == "generate" else 0.0))

    def _evaluation_needs(self, row_tokens: float | None) -> tuple[float | None, int | None]:
        rows = self._measured_rows
        if self.student is None or rows is None or row_tokens is None:
            return None, None
        disk = rows * (MEASURED_ROW_BYTES + MEASURED_TOKEN_BYTES * row_tokens)
        return 8.0 * self.student * rows * row_tokens, int(disk)

    def _training_needs(self, name: StageName, row_tokens: float | None) -> tuple[float | None, int | None]:
        section = self._section(name)
        if section is None or self.student is None:
            return None, None
        cleanup = self.config.training.checkpoint_cleanup
        kept = NUM_MILESTONES + cleanup.max_checkpoints + cleanup.keep_best
        disk = self.student * TRAINED_BYTES * kept
        if section.peft.lora is not None:
            disk //= 20
        disk += 2 * 4 * self.student  # the untouched and the trained model
        if row_tokens is not None:
            completion = self.workload.completion_tokens or 0
            k = self.config.teacher.signals.num_logprobs if name == "distill" else 0
            disk += int(4 * row_tokens * (self.workload.train_rows or 0) + EXAMPLE_BYTES * k * completion)
        steps = self.steps(section)
        if steps is None or row_tokens is None:
            return None, disk
        trained = steps * rows_per_step(self.config, section) * row_tokens
        return training_operations(self.student, trained), disk

    def _text_bytes(self) -> float:
        """Texts of the store, the requests and teacher.jsonl."""
        completion, requests = self.workload.completion_tokens or 0, self.workload.requests or 0
        prompts = self.workload.requested_prompt_tokens or 0
        jsonl = REQUEST_BYTES * requests + JSON_BYTES * (completion + prompts)
        return STORED_ROW_BYTES * requests + STORED_PROMPT_BYTES * prompts + TEXT_BYTES * completion + jsonl

    def _signal_bytes(self, completion: int) -> float:
        """Signals of `completion` tokens in the store: an id takes its bits, a logprob always as many."""
        k = self.config.teacher.signals.num_logprobs
        if self.vocabulary is None:
            return completion * SIGNAL_BYTES_AT_20 * k / 20
        return completion * k * (LOGPROB_BYTES + math.log2(max(2, self.vocabulary)) / 8)

    def _tokens(self, name: StageName) -> int | None:
        work = self.workload
        if name == "prepare":
            return work.prompt_tokens
        if name in ("generate", "score"):
            return work.completion_tokens
        section = self._section(name)
        steps = self.steps(section)
        if section is None or steps is None or work.completion_tokens is None or not work.requests:
            return None
        each = work.completion_tokens / work.requests
        return round(steps * rows_per_step(self.config, section) * each)


def rows_per_step(config: Config, section: SftSection | DistillationSection) -> int:
    """Rows that an optimizer step reads."""
    rows = section.per_device_train_batch_size * section.gradient_accumulation_steps
    return rows * worker_range(config.training)[1]


def configured_training(config: Config) -> list[tuple[StageName, SftSection | DistillationSection]]:
    """The training stages of a run and their sections, in order."""
    found: list[tuple[StageName, SftSection | DistillationSection]] = []
    if config.train.sft is not None:
        found.append(("sft", config.train.sft))
    if config.train.distillation is not None:
        found.append(("distill", config.train.distillation))
    return found
