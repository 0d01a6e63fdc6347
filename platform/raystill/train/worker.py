"""The training loop: build, restore, then for every step: train, maybe log, evaluate, save and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from raystill.checkpoint.retention import apply_retention, milestone_steps, require_space
from raystill.checkpoint.store import latest_valid, load_checkpoint
from raystill.errors import DivergenceError
from raystill.train.assembly import TrainJob, TrainRun, assemble
from raystill.train.evaluation import evaluate_loss
from raystill.train.group import WorkerGroup
from raystill.train.metrics import Window, append_metrics, rewind_metrics
from raystill.train.output import save_final_model
from raystill.train.step import StepResult, train_step
from raystill.train.summary import summarise

# Weights and two moments, all float32.
_NUMBERS_PER_WEIGHT, _BYTES_PER_NUMBER = 3, 4


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
    window = Window.start(state.student.device)
    milestones = set(milestone_steps(state.total_steps))
    while state.step < state.total_steps:
        plan = run.planner.plan(state.step, group.rank)
        if plan.num_tokens == 0:
            state.step += 1
            state.counters.masked_steps += 1
            result = None
        else:
            result = train_step(state, plan, run.data.train, run.objective, settings, group)
            window.add(result.sums_6)
            stop_if_diverged(run)
        metrics: dict[str, Any] = {}
        if is_due(run, settings.log_every):
            metrics = log_window(run, window, result)
            window = Window.start(state.student.device)
        if evaluation_is_due(run):
            metrics |= log_evaluation(run)
        if is_due(run, settings.save_every) or state.step in milestones:
            save(run)
            reporter.report(state.step, metrics)
    if group.is_first:
        save_final_model(state.student, run.chat, job.paths.stage_dir(job.stage), job.paths.model(job.stage))
    return summarise(run)


def restore_latest(run: TrainRun) -> None:
    """Continue from the newest checkpoint that verifies; a fresh run is left alone."""
    directory = run.job.paths.checkpoints(run.job.stage)
    found = latest_valid(directory)
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


def log_window(run: TrainRun, window: Window, result: StepResult | None) -> dict[str, Any]:
    """Write a line of metrics.jsonl for the steps since the last one."""
    values: dict[str, Any] = window.summary(run.settings.terms.kl_weight > 0)
    if result is not None:
        values |= {"train/grad_norm": result.grad_norm, "train/lr": result.learning_rate}
    counters = run.state.counters
    values |= {"train/nonfinite_steps": counters.nonfinite_steps, "total_steps": run.state.total_steps}
    return _append(run, values)


def log_evaluation(run: TrainRun) -> dict[str, Any]:
    """Measure the held-out loss and write it to metrics.jsonl."""
    values = evaluate_loss(run.state.student, run.data.held_out, run.objective, run.settings, run.group)
    return _append(run, values) if values else {}


def save(run: TrainRun) -> None:
    """Make room, publish a checkpoint, and let go of what retention lets go.

    Raises EnvironmentFault, with the checkpoints on disk untouched, where there is no room.
    """
    if not run.group.is_first:
        return
    directory = run.job.paths.checkpoints(run.job.stage)
    size = run.state.student.num_parameters(trainable_only=True) * _NUMBERS_PER_WEIGHT * _BYTES_PER_NUMBER
    require_space(directory, size)
    run.state.save(directory, run.data_fingerprint)
    _apply_retention(run, directory)


def _apply_retention(run: TrainRun, directory: Path) -> None:
    apply_retention(
        directory,
        total_steps=run.state.total_steps,
        max_recent=run.settings.max_checkpoints,
        min_free_gb=run.settings.min_free_space_gb,
        current=run.state.step,
    )


def _append(run: TrainRun, values: dict[str, Any]) -> dict[str, Any]:
    if run.group.is_first:
        append_metrics(run.job.paths.training_metrics(run.job.stage), run.state.step, values)
    return values
