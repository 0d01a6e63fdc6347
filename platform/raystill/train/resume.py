"""Going on from the newest checkpoint that verifies, which the workers look for together."""

from __future__ import annotations

from pathlib import Path

import torch

from raystill.checkpoint.copies import copies_of
from raystill.checkpoint.store import (
    LatestCheckpoint,
    claimed_checkpoints,
    latest_valid,
    load_checkpoint_manifest,
    open_checkpoint,
    refuse_newer,
    step_of,
    verify_checkpoint,
    verify_content,
)
from raystill.errors import DataError, EnvironmentFault
from raystill.train.assembly import TrainRun
from raystill.train.group import WorkerGroup
from raystill.train.metrics import rewind_metrics


def restore_latest(run: TrainRun) -> None:
    """Continue from the newest checkpoint that verifies, here or among the copies; a fresh run is left alone.

    Collective. Raises EnvironmentFault where the workers see different checkpoints: the run directory is not
    shared; DataError where all that there is comes from a newer program.
    """
    directory, device = run.job.paths.checkpoints(run.job.stage), run.state.student.device
    copies = copies_of(run.job.paths, run.job.stage)
    if copies is not None:
        if run.group.is_first:
            run.notes.extend(copies.fetch_newer())
        run.group.most(0, device)  # no worker looks before the first has brought it
    found = find_latest(directory, run.group, device)
    run.notes.extend(f"{path.name} was passed over: {why}" for path, why in found.passed_over)
    if found.path is None:
        refuse_newer(path for path, _ in found.passed_over)
    else:
        with open_checkpoint(found.path) as content:
            run.state.restore(content, run.data_fingerprint)
            source = content.groups.get("source")
            tensors = {name: source.tensor(name) for name in source.names()} if source is not None else {}
        run.source.restore(tensors, run.state.step)
    if run.group.is_first:
        rewind_metrics(run.job.paths.training_metrics(run.job.stage), run.state.step)


def find_latest(directory: Path, group: WorkerGroup, device: torch.device) -> LatestCheckpoint:
    """`latest_valid`, for which each worker reads its share of the files. Collective.

    The first worker's answer says why newer ones were passed over. Raises EnvironmentFault where the workers
    don't see the same.
    """
    if group.size == 1:
        return latest_valid(directory)
    passed_over: list[tuple[Path, str]] = []
    for path in [*claimed_checkpoints(directory), None]:
        step = -1 if path is None else int(step_of(path) or 0)
        newest, oldest = group.most(step, device), -group.most(-step, device)
        if newest != oldest:
            raise EnvironmentFault(
                f"the workers see different checkpoints: the newest is of step {newest}, and this one sees "
                + (f"step {step}" if path is not None else "none"),
                where=str(directory.absolute()),
                fix="put run.dir on a filesystem that all nodes share",
            )
        if path is None:
            break
        why = _find_damage(path, group)
        if group.most(int(why is not None), device) == 0:
            return LatestCheckpoint(path, step, tuple(passed_over))
        if group.is_first:
            why = why or _find_damage(path)
        passed_over.append((path, why or "another worker can't read it"))
    return LatestCheckpoint(None, None, tuple(passed_over))


def _find_damage(path: Path, group: WorkerGroup | None = None) -> str | None:
    """What is wrong with the checkpoint at `path`, in this worker's share of its files, or in all."""
    try:
        if group is None:
            verify_checkpoint(path)
        else:
            manifest = load_checkpoint_manifest(path)
            verify_content(path, manifest, reader=group.rank, num_readers=group.size)
    except DataError as error:
        return error.what
    return None
