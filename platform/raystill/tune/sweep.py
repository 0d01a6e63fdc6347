"""A sweep from beginning to end: refuse what is wrong, search, keep the best, write the table and the page.

The driver holds no state: trials on disk say what is done, so a sweep whose process dies goes on with the
same command, and its unfinished trials from their newest checkpoints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.config.support import require_supported
from raystill.config.tune import TuneSection
from raystill.config.tuned_stage import resolve_tuned_stage
from raystill.errors import ConfigError, DataError
from raystill.run.interrupts import sigterm_interrupts
from raystill.run.lock import hold_lock
from raystill.run.paths import RunPaths
from raystill.run.publish import discard_directory, make_directory, write_json
from raystill.run.stage import Stage, changed_keys, load_inputs
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.tune.concurrency import Concurrency
from raystill.tune.records import TrialRecord, best_trial, load_trials
from raystill.tune.search import Watch, search


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did. `teacher_rows` counts rows that its trials added to the teacher's store."""

    paths: SweepPaths
    trials: list[TrialRecord]
    best: TrialRecord | None
    best_config: Path | None
    teacher_rows: int
    seconds: float
    concurrency: Concurrency
    reused: frozenset[int]

    @property
    def teacher_passes(self) -> int:
        """Batches that its trials asked a teacher in memory about: none, as they train from the store."""
        return sum(record.last.teacher_passes for record in self.trials if record.last is not None)

    @property
    def overhead_seconds(self) -> float:
        """Time per trial of this call outside of trials: Ray's start, processes, waiting for the next."""
        done = self.trials[:0] if self.concurrency.trials == 0 else self.trials
        fresh = [record for record in done if record.number not in self.reused]
        if not fresh:
            return 0.0
        busy = sum(record.seconds for record in fresh) / self.concurrency.trials
        return max(0.0, self.seconds - busy) / len(fresh)

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data; the shape that --json prints."""
        from raystill.tune.winner import trial_rows

        return {
            "sweep_dir": str(self.paths.root),
            "trials": trial_rows(self.trials),
            "best": None if self.best is None else self.best.number,
            "best_config": None if self.best_config is None else str(self.best_config),
            "teacher_passes": self.teacher_passes,
            "teacher_rows": self.teacher_rows,
            "concurrent": self.concurrency.trials,
            "seconds": round(self.seconds, 3),
            "overhead_seconds_per_trial": round(self.overhead_seconds, 3),
            "report": str(self.paths.report),
        }


def tuned_stage(config: Config) -> Stage:
    """The stage that the sweep's trials train. Raises ConfigError without a `tune` section."""
    from raystill.train.stage import DISTILL_STAGE, SFT_STAGE

    if config.tune is None:
        raise ConfigError(
            "there is no `tune` section",
            where="tune",
            fix="add configs/tune/lora_and_losses.yaml to --config",
        )
    name = resolve_tuned_stage(config.tune, has_distillation=config.train.distillation is not None)
    return SFT_STAGE if name == "sft" else DISTILL_STAGE


def run_sweep(loaded: LoadedConfig, *, fresh: bool = False, watch: Watch | None = None) -> SweepResult:
    """Search; a sweep that is complete already only writes its table and page again.

    Raises DataError where the run has no answers yet or where no trial reported anything, ConfigError where
    the sweep was begun with other settings (`fresh` replaces it), EnvironmentFault where not one trial fits,
    DiskFault where a trial had to stop for want of room: run again, the sweep goes on.
    """
    from raystill.tune.page import save_page
    from raystill.tune.winner import save_table, save_winner

    config = loaded.config
    stage = tuned_stage(config)
    tune = cast(TuneSection, config.tune)
    require_supported(loaded, [stage.name])
    run = RunPaths.from_config(config)
    sweep = SweepPaths.of(run, tune.name)
    started = time.monotonic()
    load_inputs(stage, config, run)  # a directory that is no run yet gets no files of a sweep
    with hold_lock(sweep.lock), sigterm_interrupts():
        begin = _prepare(sweep, stage, config, run, fresh)
        before = _count_rows(run)
        earlier = [] if fresh else load_trials(sweep)
        concurrency = search(config, stage, run, sweep, earlier, begin, watch)
        records = load_trials(sweep)
        save_table(sweep, records)
        best = best_trial(records, tune.mode)
        best_config = None
        if best is not None:
            own = TrialPaths.of_trial(run, sweep, best.number, stage.name)
            store = str(run.store if not isinstance(run.store, Path) else run.store.absolute())
            best_config = save_winner(sweep, config, best, own.checkpoints(stage.name), store)
        result = SweepResult(
            sweep,
            records,
            best,
            best_config,
            _count_rows(run) - before,
            time.monotonic() - started,
            concurrency,
            frozenset(record.number for record in earlier if record.outcome != "unfinished"),
        )
        save_page(result, tune)
        _show_in_report(config, run)
    if best is None:
        reasons = "; ".join(f"trial {r.number}: {r.problem}" for r in records if r.problem)
        raise DataError(
            "no trial reported its metric", where=str(sweep.root), fix=reasons or "look into the trials' logs"
        )
    return result


def _show_in_report(config: Config, run: RunPaths) -> None:
    """Make the report of a finished run again, which then has the sweep; one that can't be made stays."""
    from raystill.report.build import build_report

    if run.report.exists():
        with suppress(DataError):
            build_report(run, config)


def _prepare(
    sweep: SweepPaths, stage: Stage, config: Config, run: RunPaths, fresh: bool
) -> Callable[[], None]:
    """Refuse other settings than those that the sweep was begun with; returns what writes them down, and with
    `fresh` lets go of its trials: to be called once nothing else can be refused."""
    inputs = load_inputs(stage, config, run)
    assert config.tune is not None
    search = config.tune.model_dump(mode="json", exclude={"max_concurrent", "resources", "max_gb"})
    origin = {
        "config": stage.settings(config) | {"tune": search},
        "inputs": {name: manifest.fingerprint for name, manifest in inputs.items()},
    }
    if sweep.record.exists() and not fresh:
        recorded = json.loads(sweep.record.read_text(encoding="utf-8"))
        different = changed_keys(recorded["config"], origin["config"])
        different += changed_keys(recorded["inputs"], origin["inputs"])
        if different:
            raise ConfigError(
                "the sweep was begun with other settings:\n    " + "\n    ".join(different),
                where=str(sweep.root),
                fix="restore them, choose another tune.name, or start again with --fresh",
            )

    def begin() -> None:
        if fresh:
            for directory in (sweep.trials, sweep.best, sweep.examples):
                discard_directory(directory)
        make_directory(sweep.trials)
        write_json(sweep.record, origin)

    return begin


def _count_rows(run: RunPaths) -> int:
    """Rows that are committed to the run's store."""
    from raystill.store.commit import load_commits
    from raystill.store.store import load_store

    store = load_store(run.store)
    return sum(
        commit.num_rows
        for partition in range(store.num_partitions)
        for commit in load_commits(store, partition, "rows")
    )
