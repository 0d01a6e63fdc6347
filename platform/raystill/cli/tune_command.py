"""`raystill tune`: search over a training stage, with a live table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from raystill.cli.arguments import ConfigFiles, Debug, DryRun, Fresh, Json, Overrides, load_from_options
from raystill.cli.environment import quiet_libraries
from raystill.cli.terminal import LOG, RESULTS, human_seconds, make_table, print_json, print_table
from raystill.report.parallel import shorten

if TYPE_CHECKING:
    from raystill.config.schema import Config
    from raystill.tune.concurrency import Concurrency
    from raystill.tune.records import TrialRecord
    from raystill.tune.sweep import SweepResult

_REFRESH_SECONDS = 0.5
_MOST_ROWS = 24


def tune(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search values for a training stage; all trials train from the answers that the run has stored."""
    loaded = load_from_options(config, overrides)
    if dry_run:
        _show_plan(loaded.config, as_json)
        return
    quiet_libraries()
    from raystill.tune.sweep import run_sweep

    table = LiveTrials(loaded.config)
    try:
        result = run_sweep(loaded, fresh=fresh, watch=table.show)
    finally:
        table.stop()
    if as_json:
        print_json(result.to_json())
        return
    _print_result(result, loaded.config)


class LiveTrials:
    """The trials on standard error: a table on a terminal, a line per finished trial elsewhere."""

    def __init__(self, config: Config) -> None:
        assert config.tune is None or config.tune.space is not None
        self._paths = list(config.tune.space) if config.tune is not None else []
        self._metric = config.tune.metric if config.tune is not None else ""
        self._mode = config.tune.mode if config.tune is not None else "min"
        self._live: Live | None = None
        self._drawn = 0.0
        self._said: dict[int, str] = {}

    def show(self, records: list[TrialRecord], concurrency: Concurrency) -> None:
        """Show the trials as they are now."""
        if not LOG.is_terminal:
            self._say(records)
            return
        if time.monotonic() - self._drawn < _REFRESH_SECONDS:
            return
        self._drawn = time.monotonic()
        title = f"{len(records)} trials, {concurrency.trials} at once (limit: {concurrency.limit})"
        drawn = trial_table(title, records[-_MOST_ROWS:], self._paths, self._metric)
        if self._live is None:
            self._live = Live(drawn, console=LOG, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(drawn, refresh=True)

    def stop(self) -> None:
        """Take the table off the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, records: list[TrialRecord]) -> None:
        for record in records:
            score = "" if record.last is None else f", {self._metric} {record.last.value:.5g}"
            words = f"trial {record.number} {record.outcome}{score}"
            if record.outcome != "unfinished" and self._said.get(record.number) != words:
                self._said[record.number] = words
                LOG.print(f"      {words}{': ' + record.problem if record.problem else ''}", markup=False)


def trial_table(title: str, records: list[TrialRecord], paths: list[str], metric: str) -> Table:
    """One line per trial; keys by their last part, with more of it where two would look alike."""
    names = [shorten(path, paths) for path in paths]
    columns = {"trial": True, "outcome": False, "step": True, metric: True} | dict.fromkeys(names, True)
    rows = []
    for record in records:
        last = record.last
        rows.append(
            (
                str(record.number),
                "running" if record.outcome == "unfinished" else record.outcome,
                "" if last is None else f"{last.step} ({last.percent:.0f} %)",
                "" if last is None else f"{last.value:.5g}",
                *(_shown(record.params.get(path)) for path in paths),
            )
        )
    return make_table(title, columns, rows)


def _print_result(result: SweepResult, config: Config) -> None:
    from raystill.tune.records import rank_key

    assert config.tune is not None
    mode = config.tune.mode
    ordered = sorted(result.trials, key=lambda record: rank_key(record, mode))
    print_table(
        trial_table(f"Sweep {result.paths.root}", ordered, list(config.tune.space), config.tune.metric)
    )
    for record in ordered:
        if record.problem:
            RESULTS.print(f"trial {record.number}: {record.problem}", markup=False)
    RESULTS.print()
    if result.reused:
        RESULTS.print(f"{len(result.reused)} trials were finished already")
    RESULTS.print(
        f"{len(ordered)} trials in {human_seconds(result.seconds)}, {result.concurrency.trials} at once "
        f"(limit: {result.concurrency.limit}); {result.overhead_seconds:.1f} s per trial around the trials"
    )
    RESULTS.print(
        f"teacher: {result.teacher_passes} forward passes and {result.teacher_rows} new rows; every trial "
        "trained from the stored answers"
    )
    if result.best is not None and result.best.last is not None:
        RESULTS.print(
            f"best:    trial {result.best.number}, {config.tune.metric} {result.best.last.value:.5g}"
        )
        RESULTS.print(f"report:  {result.paths.report}")
        RESULTS.print(
            f"\nNext:\n  # train, measure and export the winner\n  raystill run --config {result.best_config}"
        )


def _show_plan(config: Config, as_json: bool) -> None:
    """What a sweep would try, without starting anything."""
    from raystill.errors import ConfigError
    from raystill.tune.space import plan_params

    if config.tune is None:
        raise ConfigError("there is no `tune` section", where="tune", fix="add a file with one to --config")
    planned: list[dict[str, Any]] = [] if config.tune.search == "optuna" else plan_params(config.tune)
    if as_json:
        print_json({"trials": planned or config.tune.num_samples})
        return
    if not planned:
        RESULTS.print(f"{config.tune.num_samples} trials, each chosen by what the ones before it reached")
        return
    paths = list(config.tune.space)
    names = dict.fromkeys((shorten(path, paths) for path in paths), True)
    rows = [(str(number), *(_shown(params[path]) for path in paths)) for number, params in enumerate(planned)]
    print_table(make_table("Trials", {"trial": True} | names, rows))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
