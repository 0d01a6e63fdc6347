"""The training loop: build, restore, then for every step: train, maybe log, evaluate, save and report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from raystill.checkpoint.policy import milestone_steps
from raystill.checkpoint.store import latest_valid
from raystill.errors import DivergenceError
from raystill.train.assembly import TrainJob, TrainRun, assemble
from raystill.train.group import WorkerGroup
from raystill.train.output import save_final_model
from raystill.train.resume import restore_latest
from raystill.train.saving import CheckpointSaver
from raystill.train.sharding import is_sharded, make_whole
from raystill.train.step import train_step
from raystill.train.step_log import StepLog
from raystill.train.stopping import StopWatch
from raystill.train.summary import summarise


class Reporter(Protocol):
    """Where a worker's progress goes besides metrics.jsonl; called by every worker at the same steps."""

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Pass on the metrics of a step whose checkpoint is being written, or is; `total_steps` and
        `teacher_passes` besides."""


def train_worker(
    job: TrainJob,
    group: WorkerGroup,
    reporter: Reporter,
    is_preempted: Callable[[], bool] | None = None,
    *,
    reports_saved: bool = False,
) -> dict[str, Any]:
    """Train to the last step, from the newest verified checkpoint where there is one.

    `reports_saved` waits for the disk before each report: who hears of a step finds its checkpoint there.
    Returns what the stage's manifest should say. Raises RaystillError for bad input before step 1, and
    DivergenceError after too many non-finite steps in a row; EnvironmentFault, with the last step saved,
    where there is a reason to stop (`stopping`). All workers ask `is_preempted` together.
    """
    run = assemble(job, group)
    restore_latest(run)
    log = StepLog(run)
    saver = CheckpointSaver(run)
    started = time.monotonic()
    try:
        stop = StopWatch(run, saver, is_preempted)
        run_steps(run, log, saver, reporter, stop, reports_saved=reports_saved)
        saver.finish()
        loop_seconds = time.monotonic() - started
    except BaseException:
        log.close()
        raise
    finally:
        saver.close()
        run.source.close()
    summary = summarise(run)
    summary["metrics"]["loop_seconds"] = round(loop_seconds, 3)
    summary["metrics"]["peak_tflops"] = round(log.peak_flops / 1e12, 4)
    if is_sharded(run.state.student.network):
        make_whole(run.state.student.network)
    if group.is_first:
        model = job.paths.model(job.stage)
        start = job.paths.initial_model(job.stage)
        save_final_model(run.state.student, run.chat, job.paths.stage_dir(job.stage), model, start)
        summary["counts"]["tracker_failures"] = log.close(model)
    return summary


def run_steps(
    run: TrainRun,
    log: StepLog,
    saver: CheckpointSaver,
    reporter: Reporter,
    stop: StopWatch,
    *,
    reports_saved: bool,
) -> None:
    """Take the steps that are left. Raises DivergenceError after too many non-finite steps in a row."""
    state, settings = run.state, run.settings
    milestones = set(milestone_steps(state.total_steps))
    while state.step < state.total_steps:
        saver.check()
        with log.clock.measure("data"):
            work = run.source.work(state.step)
        if work.plan.num_tokens == 0:
            state.step += 1
            state.counters.masked_steps += 1
        else:
            result = train_step(
                state, work.plan, work.examples, run.objective, settings, run.group, log.clock
            )
            log.add(result)
            stop_if_diverged(run, saver)
        metrics: dict[str, Any] = {}
        if is_due(run, settings.log_every):
            metrics = log.write()
        if evaluation_is_due(run):
            metrics |= log.write_evaluation()
        is_saved = is_due(run, settings.save_every) or state.step in milestones
        if is_saved:
            with log.clock.measure("save"):
                saver.save(metrics)
                if reports_saved:
                    saver.finish()
            known = {"total_steps": state.total_steps, "teacher_passes": run.source.teacher_passes}
            reporter.report(state.step, metrics | known)
        if state.step < state.total_steps:
            stop.check(is_saved, metrics)


def is_due(run: TrainRun, every: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return run.state.step % every == 0 or run.state.step == run.state.total_steps


def evaluation_is_due(run: TrainRun) -> bool:
    """Whether the held-out loss is measured after this step."""
    strategy = run.settings.eval_strategy
    if strategy == "no":
        return False
    return is_due(run, run.settings.save_every if strategy == "steps" else run.planner.steps_per_epoch)


def stop_if_diverged(run: TrainRun, saver: CheckpointSaver) -> None:
    """Raise DivergenceError after more than max_nonfinite_steps skipped steps in a row. Collective.

    The save in flight ends first: the message names the checkpoint that a later run goes on from.
    """
    if run.state.counters.nonfinite_streak <= run.settings.max_nonfinite_steps:
        return
    saver.close()
    run.group.most(run.state.step, run.state.student.device)  # no worker looks before the first has written
    good = latest_valid(run.job.paths.checkpoints(run.job.stage)).path
    raise DivergenceError(
        f"{run.state.counters.nonfinite_streak} steps in a row had a loss or gradient that is not finite; "
        f"stopped at step {run.state.step}",
        where=f"last good checkpoint: {good}" if good else "no checkpoint was saved yet",
        fix="lower the learning rate, or start again with --fresh; float32 is steadier than half precision",
    )
