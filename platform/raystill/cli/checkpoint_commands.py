"""`raystill checkpoints`: what a run keeps and why, whether it is sound, and what may go."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from raystill.cli.arguments import Debug, DryRun, Json
from raystill.cli.terminal import RESULTS, human_bytes, make_table, print_json, print_table
from raystill.errors import ConfigError, DataError, EnvironmentFault, Problem, RemoteError

if TYPE_CHECKING:
    from raystill.checkpoint.inspect import CheckpointFacts
    from raystill.checkpoint.policy import RetentionRules
    from raystill.run.paths import RunPaths

TrainStage = Literal["sft", "distill"]
_MAX_SHOWN = 10
checkpoints_app = typer.Typer(no_args_is_help=True, help="Look after the checkpoints of a run.")
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, such as runs/demo.")]
Step = Annotated[int, typer.Argument(min=0, metavar="STEP", help="Step of the checkpoint.")]
OtherStep = Annotated[int, typer.Argument(min=0, metavar="STEP", help="Step to compare it with.")]
Stage = Annotated[
    str | None, typer.Option("--stage", help="sft or distill; unset: every one that has checkpoints.")
]
OtherRun = Annotated[Path | None, typer.Option("--other-run", help="Run directory of the second step.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Also load every tensor: weights that are not finite are damage.")
]


@checkpoints_app.command("ls")
def list_(run: Run, stage: Stage = None, as_json: Json = False, debug: Debug = False) -> None:
    """List checkpoints with their size and why each is kept, and their copies on object storage, if any.

    Manifests and sizes are looked at. Storage that can't be read is said, and is no error.
    """
    from raystill.checkpoint.inspect import inspect_checkpoints

    paths = _open_run(run)
    names = _stages(paths, stage)
    found = {name: inspect_checkpoints(paths.checkpoints(name), _rules(paths, name)) for name in names}
    copies = _look_at_copies(paths, names)
    if as_json:
        listed: dict[str, Any] = {name: [_facts_json(one) for one in rows] for name, rows in found.items()}
        print_json(listed | ({"copies": copies} if copies else {}))
        return
    for name, rows in found.items():
        cells = [
            (
                str(facts.step),
                human_bytes(facts.size_bytes),
                facts.damage or "ok",
                ", ".join(facts.reasons),
                ", ".join(
                    f"{key} {value:.4g}" for key, value in sorted(facts.metrics.items()) if "eval/" in key
                ),
            )
            for facts in rows
        ]
        headings = {"step": True, "size": True, "state": False, "kept because": False, "measured": False}
        total = human_bytes(sum(facts.size_bytes for facts in rows))
        print_table(make_table(f"{name}: {len(rows)} checkpoints, {total}", headings, cells))
        for line in _describe_copies(copies.get(name)):
            RESULTS.print(line, markup=False)


@checkpoints_app.command()
def verify(
    run: Run, stage: Stage = None, strict: Strict = False, as_json: Json = False, debug: Debug = False
) -> None:
    """Recompute every checksum. Exit code 3 if a checkpoint is damaged, which is then named."""
    from raystill.checkpoint.inspect import inspect_checkpoints

    paths = _open_run(run)
    rows = [
        facts
        for name in _stages(paths, stage)
        for facts in inspect_checkpoints(
            paths.checkpoints(name), _rules(paths, name), hashes=True, strict=strict
        )
    ]
    problems = tuple(_problem(facts) for facts in rows if facts.damage is not None)
    if problems:
        raise DataError(f"{len(problems)} damaged checkpoints", where=str(run), problems=problems)
    size = sum(facts.size_bytes for facts in rows)
    if as_json:
        print_json({"ok": True, "num_checkpoints": len(rows), "size_bytes": size})
        return
    RESULTS.print(f"verified: {len(rows)} checkpoints, {human_bytes(size)}", markup=False)


@checkpoints_app.command()
def pin(run: Run, step: Step, stage: Stage = None, as_json: Json = False, debug: Debug = False) -> None:
    """Keep a checkpoint for good. Exit code 3 if it is missing or damaged."""
    from raystill.checkpoint.pins import pin as pin_checkpoint

    paths = _open_run(run)
    name = _one_stage(paths, stage)
    is_new = pin_checkpoint(paths.checkpoints(name), step)
    _say_pinned(paths, name, step, True, is_new, as_json)


@checkpoints_app.command()
def unpin(run: Run, step: Step, stage: Stage = None, as_json: Json = False, debug: Debug = False) -> None:
    """Let retention decide about a checkpoint again."""
    from raystill.checkpoint.pins import unpin as unpin_checkpoint

    paths = _open_run(run)
    name = _one_stage(paths, stage)
    is_new = unpin_checkpoint(paths.checkpoints(name), step)
    _say_pinned(paths, name, step, False, is_new, as_json)


@checkpoints_app.command()
def prune(
    run: Run, stage: Stage = None, dry_run: DryRun = False, as_json: Json = False, debug: Debug = False
) -> None:
    """Delete now what the next save would, and what crashes left. Exit code 4 while the run goes on."""
    from raystill.checkpoint.retention import apply_retention, preview_retention, size_bytes
    from raystill.checkpoint.store import latest_valid, step_directory
    from raystill.run.lock import hold_lock

    paths = _open_run(run)
    done: dict[str, Any] = {}
    for name in _stages(paths, stage):
        directory, rules = paths.checkpoints(name), _rules(paths, name)
        if dry_run:
            newest = latest_valid(directory).step
            plan = preview_retention(directory, rules, current=newest)
            size = sum(size_bytes(step_directory(directory, step)) for step in plan.delete)
            done[name] = {"delete": list(plan.delete), "keep": list(plan.keep), "size_bytes": size}
            continue
        with hold_lock(paths.lock):
            newest = latest_valid(directory).step
            result = apply_retention(directory, rules, current=newest)
        failed = [{"path": str(path), "why": why} for path, why in result.failed]
        done[name] = {
            "delete": list(result.deleted), "keep": list(result.plan.keep),
            "size_bytes": result.freed_bytes, "failed": failed,
        }  # fmt: skip
    if as_json:
        print_json({"dry_run": dry_run, "stages": done})
        return
    verb = "would delete" if dry_run else "deleted"
    for trained, one in done.items():
        steps, freed = ", ".join(map(str, one["delete"])) or "nothing", human_bytes(one["size_bytes"])
        RESULTS.print(f"{trained}: {verb} {steps} ({freed}); {len(one['keep'])} stay", markup=False)


@checkpoints_app.command()
def diff(
    run: Run,
    left: Step,
    right: OtherStep,
    stage: Stage = None,
    other_run: OtherRun = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two checkpoints: which tensors changed, and how far, and which keys of the state."""
    from raystill.checkpoint.compare import diff_checkpoints
    from raystill.checkpoint.store import step_directory

    paths = _open_run(run)
    other = paths if other_run is None else _open_run(other_run)
    name = _one_stage(paths, stage)
    found = diff_checkpoints(
        step_directory(paths.checkpoints(name), left), step_directory(other.checkpoints(name), right)
    )
    if as_json:
        print_json(asdict(found) | {"is_equal": found.is_equal})
        return
    RESULTS.print(f"tensors      {found.num_equal:,} equal, {len(found.changed):,} changed", markup=False)
    farthest = sorted(found.changed, key=lambda change: -(change.max_abs_diff or float("inf")))
    for change in farthest[:_MAX_SHOWN]:
        far = "another shape or type" if change.max_abs_diff is None else f"at most {change.max_abs_diff:.3g}"
        RESULTS.print(f"             {change.name}: {far}", markup=False)
    for side, names in ((left, found.only_left), (right, found.only_right)):
        if names:
            RESULTS.print(f"only {side:<7} {', '.join(names[:_MAX_SHOWN])}", markup=False)
    for line in found.state:
        RESULTS.print(f"state        {line}", markup=False)


def _open_run(run: Path) -> RunPaths:
    from raystill.run.paths import RunPaths

    paths = RunPaths(root=run, store=run)
    if not paths.resolved_config.is_file():
        raise DataError(
            "this is not a run directory", where=str(run), fix="name one that raystill run has made"
        )
    return paths


def _stages(paths: RunPaths, wanted: str | None) -> list[TrainStage]:
    if wanted is not None and wanted not in get_args(TrainStage):
        raise ConfigError(f"{wanted} has no checkpoints", where="--stage", fix="use sft or distill")
    names: tuple[TrainStage, ...] = get_args(TrainStage)
    found = [name for name in names if wanted in (None, name) and paths.checkpoints(name).is_dir()]
    if not found:
        raise DataError("there are no checkpoints", where=str(paths.root), fix="train first: raystill run")
    return found


def _one_stage(paths: RunPaths, wanted: str | None) -> TrainStage:
    found = _stages(paths, wanted)
    if len(found) > 1:
        raise ConfigError(
            "both sft and distill have checkpoints", where="--stage", fix="say which: --stage distill"
        )
    return found[0]


def _rules(paths: RunPaths, stage: TrainStage) -> RetentionRules:
    from raystill.checkpoint.inspect import read_total_steps
    from raystill.checkpoint.policy import RetentionRules
    from raystill.config.load import load_config

    config = load_config([paths.resolved_config], []).config
    return RetentionRules.from_config(config, read_total_steps(paths.checkpoints(stage)))


def _look_at_copies(paths: RunPaths, names: list[TrainStage]) -> dict[str, dict[str, Any]]:
    """Of each stage the facts about its copies, or the `error` that kept them from being read; none where
    the run makes no copies."""
    from raystill.checkpoint.copies import CheckpointCopies
    from raystill.config.load import load_config
    from raystill.run.paths import RunPaths

    config = load_config([paths.resolved_config], []).config
    found: dict[str, dict[str, Any]] = {}
    for name in names if config.training.checkpoint_copies else ():
        try:
            place = RunPaths.from_config(config).checkpoint_copies(name)
            assert place is not None
            found[name] = asdict(CheckpointCopies(place, paths.checkpoints(name)).inspect()) | {"error": None}
        except (RemoteError, EnvironmentFault) as error:
            found[name] = {"place": config.training.checkpoint_copies, "error": error.what}
    return found


def _describe_copies(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    if facts["error"] is not None:
        return [f"copies: {facts['place']} can't be read: {facts['error']}"]
    whole, damaged, missing = facts["whole"], facts["damaged"], facts["missing"]
    state = "all are there" if not missing else f"steps {', '.join(map(str, missing))} are missing"
    lines = [f"copies: {len(whole)} below {facts['place']}, {human_bytes(facts['size_bytes'])}; {state}"]
    return lines + [f"        step {step} can't be used: {why}" for step, why in damaged.items()]


def _facts_json(facts: CheckpointFacts) -> dict[str, Any]:
    return asdict(facts) | {"path": str(facts.path), "ok": facts.damage is None}


def _problem(facts: CheckpointFacts) -> Problem:
    return Problem(
        facts.damage or "",
        where=str(facts.path),
        fix="resuming passes it over; restore the file from a copy, or delete this checkpoint",
    )


def _say_pinned(
    paths: RunPaths, stage: TrainStage, step: int, is_pinned: bool, is_new: bool, as_json: bool
) -> None:
    if as_json:
        print_json({"stage": stage, "step": step, "pinned": is_pinned, "changed": is_new})
        return
    state = "pinned" if is_pinned else "not pinned"
    place = paths.checkpoints(stage)
    RESULTS.print(f"step {step} is {state}{'' if is_new else ', as before'}: {place}", markup=False)
