"""What single stages need: operations, seconds, tokens and bytes, from the workload and the models' sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raystill.cluster.endpoint_cost import estimate_seconds
from raystill.cluster.judge_work import JudgeWork
from raystill.cluster.rates import rate_key
from raystill.cluster.workload import Workload
from raystill.config.schema import Config
from raystill.config.training import DistillationSection, SftSection
from raystill.config.worker_range import worker_range
from raystill.run.paths import StageName
from raystill.run.state import StageState

Action = Literal["reuse", "resume", "run", "refuse"]

PROMPT_BYTES = 28.0  # of a row of the prompt table, besides its text
REQUEST_BYTES = 250.0  # of a row of the requests and of teacher.jsonl, besides its text
JSON_BYTES = 4.0  # per token, as text
EXAMPLE_BYTES = 6.0  # encoded for training, per completion token and logprob: float16 and int32
SIGNAL_BYTES_AT_20 = 57.0  # measured per completion token at k = 20: float16 logprobs, int32 ids, zstd
TEXT_BYTES = 6.0  # text and token ids per token, compressed
NUM_MILESTONES = 6
TRAINED_BYTES = 12  # checkpoint: float32 weight and two float32 moments per trained parameter
STARTUP_SECONDS: dict[StageName, float] = {
    "prepare": 1, "generate": 40, "score": 40, "grade": 40, "curate": 5, "sft": 20, "distill": 20,
    "evaluate": 10, "export": 15,
}  # fmt: skip
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
    student: int | None
    speed: float
    machine: str
    rates: Mapping[str, float]

    def plan(self, name: StageName, state: StageState) -> PlannedStage:
        action = _ACTIONS[state.status]
        if action == "reuse" and state.manifest is not None:
            return PlannedStage(name, action, self._work(name), 0.0, 0)
        operations, disk = self._needs(name)
        rate = self._rate(name)
        if operations is None:
            seconds = None
        elif rate is not None:  # measured with its start-up
            seconds = operations / rate
        else:
            seconds = STARTUP_SECONDS[name] + operations / self.speed
        if name == "generate" and self.config.teacher.base.from_store is not None:
            seconds, disk = STARTUP_SECONDS["prepare"], 0
        elif name == "generate" and self.config.teacher.closed is not None:
            seconds = estimate_seconds(self.config, self.workload)
        elif name == "grade" and self.config.grade is not None and self.config.grade.closed is not None:
            seconds = None if self.judge is None else self.judge.least_seconds
        tokens = self._tokens(name)
        return PlannedStage(name, action, self._work(name), seconds, disk, tokens, state.differences)

    def remembered(self, stages: Sequence[PlannedStage]) -> list[StageName]:
        """The stages whose time rests on an earlier run's rate."""
        return [stage.name for stage in stages if self._rate(stage.name) is not None]

    def _rate(self, name: StageName) -> float | None:
        """Operations per second of an earlier run with a model of this size on this machine."""
        parameters = self.teacher if name == "generate" else self.student
        if name not in ("generate", "sft", "distill") or parameters is None:
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
            held_out = self.workload.eval_rows
            wanted = self.config.evaluation.max_samples
            if held_out is None:
                return "held-out prompts"
            return f"{min(held_out, wanted or held_out):,} held-out prompts"
        if name == "export":
            return f"merged safetensors, {self.config.export.dtype}"
        return count

    def _needs(self, name: StageName) -> tuple[float | None, int | None]:
        """Floating-point operations and bytes on disk of a stage, None where unknown."""
        tokens = self.workload.row_tokens
        completion = self.workload.completion_tokens
        k = self.config.teacher.signals.num_logprobs
        match name:
            case "prepare":
                prompts, rows = self.workload.prompt_tokens, self.workload.rows
                return 0.0, None if prompts is None or rows is None else int(prompts + PROMPT_BYTES * rows)
            case "generate" | "score":
                if completion is None:
                    return None, None
                operations = None if self.teacher is None else 2.0 * self.teacher * completion
                signals = completion * SIGNAL_BYTES_AT_20 * k / 20
                return operations, int(signals + (self._text_bytes() if name == "generate" else 0.0))
            case "grade":
                if self.judge is None or self.judge.tokens is None:
                    return None, None
                return self.judge.operations, int(self.judge.tokens * TEXT_BYTES)
            case "curate":
                return 0.0, 64 * (self.workload.rows or 0)
            case "sft" | "distill":
                return self._training_needs(name, tokens)
            case "evaluate":
                if self.student is None or self.workload.eval_rows is None or tokens is None:
                    return None, None
                return 8.0 * self.student * self.workload.eval_rows * tokens, 128 * self.workload.eval_rows
            case "export":
                if self.student is None:
                    return None, None
                return 0.0, self.student * (4 if self.config.export.dtype == "float32" else 2)

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
        return 6.0 * self.student * steps * rows_per_step(self.config, section) * row_tokens, disk

    def _text_bytes(self) -> float:
        """Texts of the store, the requests and teacher.jsonl."""
        completion, prompts = self.workload.completion_tokens or 0, self.workload.prompt_tokens or 0
        jsonl = REQUEST_BYTES * (self.workload.requests or 0) + JSON_BYTES * (completion + prompts)
        return TEXT_BYTES * completion + jsonl

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
