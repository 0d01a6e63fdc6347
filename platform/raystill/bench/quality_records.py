"""What one arm measured, on the disk: a benchmark that was killed goes on with the arms that are missing."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from raystill.bench.quality_arms import BY_NAME, Arm, ArmName, Task
from raystill.bench.quality_train import ArmPaths, train_in_process
from raystill.bench.quality_worlds import World
from raystill.bench.signal_bytes import bytes_per_token
from raystill.config.schema import Config
from raystill.evaluate.gap import ModelOutputs, build_row
from raystill.evaluate.inputs import HeldOut, load_held_out
from raystill.evaluate.measure import measure_contestant
from raystill.evaluate.models import Contestant, max_new_tokens
from raystill.evaluate.results import RowResult
from raystill.run.publish import write_json

TEACHER: ArmName = "teacher"


class ArmRecord(BaseModel):
    """One arm of one world: the evaluation's row, the scores of every prompt, and what it cost.

    `correct` is None where no prompt has a right answer; `kl_sums` and `tokens` are per prompt, in nats and
    completion tokens. `steps` and `cpu_seconds` (an arm is one process of one thread) are those of training
    from start to end, with the arm that it goes on from; `bytes_per_token` is what must be in the store for
    both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    seed: int
    arm: ArmName
    row: RowResult
    correct: list[bool] | None
    kl_sums: list[float]
    tokens: list[int]
    steps: int
    cpu_seconds: float
    bytes_per_token: float


@dataclass(frozen=True)
class ArmJob:
    """What a process needs to run one arm; plain data. `arm` None measures the teacher itself."""

    world: World
    arm: Arm | None
    directory: Path

    @property
    def record(self) -> Path:
        """The arm's result."""
        return self.directory / "record.json"


def arm_job(root: Path, world: World, arm: Arm | None) -> ArmJob:
    """The job of an arm below the benchmark's directory."""
    name = TEACHER if arm is None else arm.name
    return ArmJob(world, arm, root / "arms" / f"{world.task}-{world.seed}-{name}")


def load_record(job: ArmJob) -> ArmRecord | None:
    """What an earlier run measured, None where the arm is still to do."""
    if not job.record.exists():
        return None
    return ArmRecord.model_validate_json(job.record.read_text(encoding="utf-8"))


def run_arm(job: ArmJob) -> None:
    """Train one arm on one thread, measure it and publish its record."""
    world, arm = job.world, job.arm
    config = world.config().config
    held_out = load_held_out(config, world.paths)
    if arm is None:
        assert config.teacher.open is not None
        model = Path(config.teacher.open.model.name)
        _publish(job, TEACHER, _measure(config, held_out, model), held_out, 0, 0.0, 0.0)
        return
    root = job.directory.parent
    first = None if arm.after is None else arm_job(root.parent, world, BY_NAME[arm.after])
    starts = world.paths.stage_dir("sft") if first is None else first.directory
    # Half an arm of a killed run would cost less than it does: arms are short, and begin anew.
    shutil.rmtree(job.directory, ignore_errors=True)
    paths = ArmPaths.of_arm(world.paths, job.directory, starts)
    own = world.arm_config(arm).config
    started = time.process_time()
    train_in_process(own, paths, "distill", 1)
    steps, cpu_seconds = arm.steps(world.steps), time.process_time() - started
    num_bytes = bytes_per_token(own, world.paths, arm.signal, arm.num_logprobs)
    if first is not None:
        before = load_record(first)
        assert before is not None  # the arm's weights were there to start from
        steps, cpu_seconds = steps + before.steps, cpu_seconds + before.cpu_seconds
        num_bytes = max(num_bytes, before.bytes_per_token)
    outputs = _measure(config, held_out, paths.model("distill"))
    _publish(job, arm.name, outputs, held_out, steps, cpu_seconds, num_bytes)


def _measure(config: Config, held_out: HeldOut, model: Path) -> ModelOutputs:
    """The evaluation stage's own measurement. Without right answers one token is written, as nothing reads
    more."""
    has_answers = any(prompt.task != "text" for prompt in held_out.prompts)
    return measure_contestant(
        Contestant("distill", "arm", model, max_new_tokens(config) if has_answers else 1),
        held_out.prompts,
        held_out.rows,
        tokens=held_out.tokens,
        config=config,
    )


def _publish(
    job: ArmJob,
    name: ArmName,
    outputs: ModelOutputs,
    held_out: HeldOut,
    steps: int,
    cpu_seconds: float,
    num_bytes: float,
) -> None:
    agreement = [row for row in outputs.agreement or [] if row is not None]
    correct: list[Any] = [verdict.correct for verdict in outputs.verdicts]
    record = ArmRecord(
        task=job.world.task,
        seed=job.world.seed,
        arm=name,
        row=build_row(outputs, held_out.prompts),
        correct=None if None in correct else correct,
        kl_sums=[row.kl_sum or 0.0 for row in agreement],
        tokens=[row.num_tokens for row in agreement],
        steps=steps,
        cpu_seconds=cpu_seconds,
        bytes_per_token=num_bytes,
    )
    write_json(job.record, record.model_dump(mode="json"))
