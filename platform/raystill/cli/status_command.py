"""`raystill status RUN`: how far a run is. Reads files only, so it is quick and disturbs nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raystill.cli.arguments import ConfigFiles, Debug, Json, Overrides, load_from_options
from raystill.cli.batch_lines import print_batches
from raystill.cli.terminal import RESULTS, human_seconds, make_table, print_json, print_table

if TYPE_CHECKING:
    from raystill.run.paths import RunPaths
    from raystill.run.status import RunStatus, StageStatus

RunDirectory = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="Directory of a run; unset: the one of --config.")
]


def status(
    run: RunDirectory = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print how far a run is: stages, rows, what was spent and reused; its sweeps, and live batches."""
    from raystill.run.status import read_status
    from raystill.run.sweep_status import list_sweeps
    from raystill.teacher.batch_api.overview import list_live_batches

    paths = find_run(run, config, overrides)
    found = read_status(paths)
    batches = [batch for store in (paths.store, paths.judge_store) for batch in list_live_batches(store)]
    sweeps = list_sweeps(paths)
    if as_json:
        listed = {"batches": [asdict(batch) for batch in batches], "sweeps": [asdict(s) for s in sweeps]}
        print_json(asdict(found) | listed)
        return
    _print_status(found, _stages_of(paths))
    for sweep in sweeps:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(sweep.outcomes.items()))
        working = "; a process works on it now" if sweep.is_locked else ""
        RESULTS.print(f"sweep {sweep.name}: {sweep.trials} trials ({counts}){working}", markup=False)
    print_batches(batches)


def find_run(run: Path | None, config: ConfigFiles, overrides: Overrides) -> RunPaths:
    """The paths of the run in a directory, else of the one that a configuration names."""
    from raystill.run.paths import RunPaths

    if run is not None:
        return RunPaths(root=run, store=run / "teacher_store")
    return RunPaths.from_config(load_from_options(config, overrides).config)


def _stages_of(paths: RunPaths) -> frozenset[str]:
    """The stages that the run has by the configuration of its last start; all where none says."""
    from raystill.config.load import load_config
    from raystill.errors import RaystillError
    from raystill.pipeline import plan_stages
    from raystill.run.paths import STAGE_NAMES

    try:
        return frozenset(stage.name for stage in plan_stages(load_config([paths.resolved_config]).config))
    except (OSError, RaystillError):
        return frozenset(STAGE_NAMES)


def _print_status(found: RunStatus, wanted: frozenset[str]) -> None:
    columns = {
        "stage": False, "state": False, "done": True, "left": True, "rejected": True, "reused": True,
        "spent": True, "tokens/s": True, "time": True,
    }  # fmt: skip
    rows = [_describe(stage) for stage in found.stages if stage.condition != "absent"]
    print_table(make_table(f"Run {found.root}", columns, rows))
    waiting = [stage.name for stage in found.stages if stage.condition == "absent" and stage.name in wanted]
    if waiting:
        RESULTS.print(f"not begun: {', '.join(waiting)}")
    RESULTS.print("a process works on it now" if found.is_locked else "no process works on it")


def _describe(stage: StageStatus) -> tuple[str, ...]:
    state = stage.condition
    shown: str = state
    if state == "running" and stage.seen_seconds_ago is not None:
        shown = f"running (seen {human_seconds(stage.seen_seconds_ago)} ago)"
    seconds = ""
    if stage.seconds is not None:
        seconds = human_seconds(stage.seconds)
    elif stage.eta_seconds is not None:
        seconds = f"{human_seconds(stage.eta_seconds)} left"
    return (
        stage.name,
        shown,
        *(_number(count) for count in (stage.done, stage.left, stage.rejected, stage.rows_saved)),
        "" if stage.cost_usd is None else f"${stage.cost_usd:,.4f}",
        "" if stage.rate is None else f"{stage.rate:,.0f}",
        seconds,
    )


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"
