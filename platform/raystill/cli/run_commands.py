"""`raystill run`, one command per stage, and `raystill report`: all go through raystill.pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raystill.cli.arguments import (
    AcceptNewData,
    ConfigFiles,
    Debug,
    DryRun,
    Fresh,
    Json,
    Overrides,
    load_from_options,
)
from raystill.cli.environment import quiet_libraries
from raystill.cli.terminal import LOG, RESULTS, human_seconds, print_json, print_table

if TYPE_CHECKING:
    from raystill.config.loaded import LoadedConfig

STAGE_HELP = {
    "prepare": "Read prompts from their sources, split them, and write the prompt table.",
    "generate": "Let the teacher complete every prompt, into the teacher store.",
    "score": "Add the teacher's distributions to completions that have none.",
    "grade": "Let a judge score the teacher's answers, for curate to choose by.",
    "curate": "Choose which of the teacher's outputs to train on, with a reason for every other.",
    "sft": "Fine-tune on the teacher's completions.",
    "distill": "Train the student on the teacher's distributions.",
    "evaluate": "Measure teacher and students on held-out prompts.",
    "export": "Write the student as files that other programs load, and verify them.",
    "report": "Write report.html, one self-contained page.",
}
Probe = Annotated[
    int | None,
    typer.Option("--probe", metavar="ROWS", help="Compare the engine with another one on so many rows."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="STEP", help="Stop after this step.")]


def run(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    until: Until = None,
    fresh: Fresh = False,
    accept_new_data: AcceptNewData = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline: complete stages are skipped, the others go on where they stopped."""
    loaded = load_from_options(config, overrides)
    run_steps(None, loaded, until, fresh, dry_run, as_json, accept_new_data=accept_new_data)


def make_stage_command(name: str) -> Callable[..., None]:
    """The command function of one step that has no options of its own."""

    def command(
        config: ConfigFiles = None,
        overrides: Overrides = None,
        fresh: Fresh = False,
        accept_new_data: AcceptNewData = False,
        dry_run: DryRun = False,
        as_json: Json = False,
        debug: Debug = False,
    ) -> None:
        loaded = load_from_options(config, overrides)
        run_steps(name, loaded, None, fresh, dry_run, as_json, accept_new_data=accept_new_data)

    command.__doc__ = STAGE_HELP[name]
    return command


def score(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    probe: Probe = None,
    fresh: Fresh = False,
    accept_new_data: AcceptNewData = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    if probe is not None:
        overrides = [*(overrides or []), f"teacher.signals.probe_rows={probe}"]
    loaded = load_from_options(config, overrides)
    run_steps("score", loaded, None, fresh, dry_run, as_json, accept_new_data=accept_new_data)


score.__doc__ = STAGE_HELP["score"]


def run_steps(
    name: str | None,
    loaded: LoadedConfig,
    until: str | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    *,
    accept_new_data: bool = False,
) -> None:
    """Run one step (or all, for None) with progress, and print what came out."""
    if dry_run:
        from raystill.cli.plan_command import show_plan

        show_plan(loaded, only=name, until=until, as_json=as_json)
        return
    quiet_libraries()
    from raystill.cli.progress import TerminalObserver
    from raystill.pipeline import parse_step, run_pipeline, run_stage

    observer = TerminalObserver()
    if name is None:
        wanted = None if until is None else parse_step(until)
        result = run_pipeline(
            loaded, fresh=fresh, accept_new_data=accept_new_data, until=wanted, observer=observer
        )
    else:
        result = run_stage(
            parse_step(name), loaded, fresh=fresh, accept_new_data=accept_new_data, observer=observer
        )
    number = len(result.steps)
    LOG.print(f"{number} step{'' if number == 1 else 's'} in {human_seconds(result.seconds)}")
    if as_json:
        print_json(result.to_json())
        return
    for step in result.steps:
        if "probe" in step.metrics and name in (None, "score"):
            _print_probe(step.metrics["probe"])
    if result.paths.evaluation_results.exists() and name in (None, "evaluate", "report"):
        _print_gap_table(result.paths.evaluation_results)
    if result.paths.report.exists() and name in (None, "report"):
        RESULTS.print(f"report: {result.paths.report}")
    if name is None and until is None:
        _print_next(loaded)


def _print_gap_table(path: Path) -> None:
    from raystill.evaluate.gap_table import build_gap_table
    from raystill.evaluate.results import load_results

    RESULTS.print()
    print_table(build_gap_table(load_results(path)))


def _print_probe(probe: dict[str, Any]) -> None:
    first, second = probe["engines"]
    RESULTS.print(
        f"{first} and {second} on {probe['tokens']:,} tokens of {probe['rows']:,} rows: logprobs differ by "
        f"{probe['mean_abs']:.2e} on average, {probe['p99_abs']:.2e} at p99, {probe['max_abs']:.2e} at most"
    )


def _print_next(loaded: LoadedConfig) -> None:
    files = " ".join(source for source in loaded.sources if not source.startswith("--set "))
    name = loaded.config.run.name
    has_kd = loaded.config.train.distillation is not None
    change = "losses.divergence=reverse_kl" if has_kd else "run.seed=1"
    RESULTS.print("\nNext:")
    for what, line in (
        ("look into the teacher's outputs", f"raystill store stats --config {files}"),
        ("see where a value comes from", f"raystill config explain training.save_every --config {files}"),
        (
            "another run from the same teacher outputs",
            f"raystill run --config {files} --set run.name={name}-2 {_same_store(loaded)}--set {change}",
        ),
    ):
        RESULTS.print(f"  # {what}\n  {line}")


def _same_store(loaded: LoadedConfig) -> str:
    """What makes another run read this one's answers: nothing where a store gives them anyway."""
    from raystill.run.paths import RunPaths

    teacher = loaded.config.teacher
    if teacher.base.from_store is not None or teacher.store.path is not None:
        return ""
    return f"--set teacher.store.path={RunPaths.from_config(loaded.config).store} "
