"""`raystill plan`, which is also --dry-run of every other command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raystill.cli.arguments import ConfigFiles, Debug, Json, Overrides, load_from_options
from raystill.cli.terminal import (
    RESULTS,
    human_bytes,
    human_count,
    human_seconds,
    make_table,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from raystill.cluster.plan import Plan
    from raystill.config.loaded import LoadedConfig

Until = Annotated[str | None, typer.Option("--until", metavar="STEP", help="Plan up to this step.")]


def plan(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    until: Until = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print what a run would do: stages, rows, tokens, disk, memory and time. Starts nothing."""
    show_plan(load_from_options(config, overrides), only=None, until=until, as_json=as_json)


def show_plan(loaded: LoadedConfig, only: str | None, until: str | None, as_json: bool) -> None:
    """Plan one step or the run up to `until`, and print it."""
    from raystill.pipeline import parse_step, plan_run

    planned = plan_run(
        loaded,
        only=None if only is None else parse_step(only),
        until=None if until is None else parse_step(until),
    )
    if as_json:
        print_json(planned.to_json())
    else:
        _print_plan(planned)


def _print_plan(planned: Plan) -> None:
    rows = [
        (stage.name, stage.action, stage.work, human_seconds(stage.seconds), human_bytes(stage.disk_bytes))
        for stage in planned.stages
    ]
    columns = {"stage": False, "action": False, "work": False, "time": True, "disk": True}
    print_table(make_table(f"Plan of {planned.run_dir}", columns, rows))
    RESULTS.print()
    workload = planned.workload
    bound = "at least " if planned.unknown else "about "
    later = f" ({', '.join(planned.unknown)}: known later)" if planned.unknown else ""
    facts = [
        ("teacher", f"{human_count(planned.teacher_parameters)} parameters"),
        ("student", f"{human_count(planned.student_parameters)} parameters"),
        ("prompts", f"{human_count(workload.rows)} rows, {human_count(workload.prompt_tokens)} tokens"),
        ("completions", f"{human_count(workload.completion_tokens)} tokens"),
        ("memory", f"{human_bytes(planned.memory_bytes)} for weights, gradients and moments of the student"),
        ("disk", f"{bound}{human_bytes(planned.disk_bytes)} of {human_bytes(planned.free_disk_bytes)} free"),
        ("time", f"{bound}{human_seconds(planned.seconds)}{later}"),
        ("store", planned.store_dir),
    ]
    if planned.kd_source is not None:
        facts.insert(-3, ("KD from", planned.kd_source.text))
        if planned.kd_source.teacher_bytes != 0:
            facts.insert(
                -3, ("", f"{human_bytes(planned.kd_source.teacher_bytes)} per worker for its teachers")
            )
    if planned.cost_usd is not None:
        facts.insert(-1, ("cost", f"about ${planned.cost_usd:,.2f} for the endpoint's answers"))
    if planned.judge is not None and planned.judge.cost_usd is not None:
        facts.insert(
            -1,
            (
                "judge",
                f"about ${planned.judge.cost_usd:,.2f} for {human_count(planned.judge.questions)} answers",
            ),
        )
    facts += [("asks for", f"{demand.stage}: {demand.describe()}") for demand in planned.demands]
    for name, value in facts:
        RESULTS.print(f"{name:<12} {value}")
    for line in planned.assumptions:
        RESULTS.print(f"  assumes: {line}", style="dim")
    for warning in planned.warnings:
        RESULTS.print(f"warning: {warning}", style="yellow", markup=False)
    for problem in planned.blockers:
        RESULTS.print(f"blocked: {problem}", style="red", markup=False)
