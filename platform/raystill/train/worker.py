"""The training loop: build, restore, then for every step: train, maybe log, evaluate, save and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from raystill.checkpoint.retention import apply_retention, free_bytes, milestone_steps, require_space
from raystill.checkpoint.store import latest_valid, load_checkpoint
from raystill.errors import DivergenceError
from raystill.train.assembly import TrainJob, TrainRun, assemble
from raystill.train.group import WorkerGroup
from raystill.train.metrics import rewind_metrics
from raystill.train.output import save_final_model
from raystill.train.step import train_step
from raystill.train.step_log import StepLog
from raystill.train.summary import summarise

# Weights and two moments, all float32.
_NUMBERS_PER_WEIGHT, _BYTES_PER_NUMBER = 3, 4
_ROOM = 1.1


class Reporter(Protocol):
    """Where a worker's progress goes besides metrics.jsonl; called by every worker at the same steps."""

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Pass on the metrics of a step that has just been saved."""


def train_worker(job: TrainJob, group: WorkerGroup, reporter: Reporter) -> dict[str, Any]:
    """Train to the last step, from the newest verified checkpoint where there is one.

    Returns what the stage's manifest should say. Raises RaystillError for bad input before step 1, and
    DivergenceError after too many non-finite steps in a row.
    """
    run = assemble(job, group)
    state, settings = run.state, run.settings
    restore_latest(run)
    log = StepLog(run)
    milestones = set(milestone_steps(state.total_steps))
    while state.step < state.total_steps:
        plan = run.planner.plan(state.step, group.rank)
        if plan.num_tokens == 0:
            state.step += 1
            state.counters.masked_steps += 1
        else:
            result = train_step(state, plan, run.data.train, run.objective, settings, group)
            log.add(result)
            stop_if_diverged(run)
        metrics: dict[str, Any] = {}
        if is_due(run, settings.log_every):
            metrics = log.write()
        if evaluation_is_due(run):
            metrics |= log.write_evaluation()
        if is_due(run, settings.save_every) or state.step in milestones:
            save(run)
            reporter.report(state.step, metrics)
    summary = summarise(run)
    if group.is_first:
        save_final_model(state.student, run.chat, job.paths.stage_dir(job.stage), job.paths.model(job.stage))
    return summary


def restore_latest(run: TrainRun) -> None:
    """Continue from the newest checkpoint that verifies; a fresh run is left alone."""
    directory = run.job.paths.checkpoints(run.job.stage)
    found = latest_valid(directory)
    run.notes.extend(f"{path.name} was passed over: {why}" for path, why in found.passed_over)
    if found.path is not None:
        run.state.restore(load_checkpoint(found.path, verify=False), run.data_fingerprint, found.path)
    if run.group.is_first:
        rewind_metrics(run.job.paths.training_metrics(run.job.stage), run.state.step)


def is_due(run: TrainRun, every: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return run.state.step % every == 0 or run.state.step == run.state.total_steps


def evaluation_is_due(run: TrainRun) -> bool:
    """Whether the held-out loss is measured after this step."""
    strategy = run.settings.eval_strategy
    if strategy == "no":
        return False
    return is_due(run, run.settings.save_every if strategy == "steps" else run.planner.steps_per_epoch)


def stop_if_diverged(run: TrainRun) -> None:
    """Raise DivergenceError after more than max_nonfinite_steps skipped steps in a row."""
    if run.state.counters.nonfinite_streak <= run.settings.max_nonfinite_steps:
        return
    good = latest_valid(run.job.paths.checkpoints(run.job.stage)).path
    raise DivergenceError(
        f"{run.state.counters.nonfinite_streak} steps in a row had a loss or gradient that is not finite; "
        f"stopped at step {run.state.step}",
        where=f"last good checkpoint: {good}" if good else "no checkpoint was saved yet",
        fix="lower the learning rate, or start again with --fresh; float32 is steadier than half precision",
    )


def save(run: TrainRun) -> None:
    """Make room, publish a checkpoint, and let go of what retention lets go.

    Raises EnvironmentFault, with the checkpoints on disk untouched, where there is no room.
    """
    if not run.group.is_first:
        return
    directory = run.job.paths.checkpoints(run.job.stage)
    make_room(run, directory)
    run.state.save(directory, run.data_fingerprint)
    apply_retention(
        directory,
        total_steps=run.state.total_steps,
        max_recent=run.settings.max_checkpoints,
        min_free_gb=run.settings.min_free_space_gb,
        current=run.state.step,
    )


def make_room(run: TrainRun, directory: Path) -> None:
    """Let go of all recent checkpoints but the resume point if the next one wouldn't fit otherwise."""
    numbers = run.state.student.num_parameters(trainable_only=True) * _NUMBERS_PER_WEIGHT
    size_bytes = numbers * _BYTES_PER_NUMBER
    if directory.exists() and free_bytes(directory) < size_bytes * _ROOM:
        apply_retention(
            directory,
            total_steps=run.state.total_steps,
            max_recent=1,
            min_free_gb=run.settings.min_free_space_gb,
        )
    require_space(directory, size_bytes)
