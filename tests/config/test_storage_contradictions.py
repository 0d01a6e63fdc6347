"""Object storage is refused where files are made by rename and guarded by locks, and taken elsewhere."""

from __future__ import annotations

import pytest

from raystill.config.load import load_config
from raystill.errors import ConfigError
from raystill.run.paths import RunPaths
from raystill.run.remote import is_remote
from raystill.run.sweep_paths import SweepPaths, TrialPaths


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["run.dir=s3://bucket/prefix"], "renames and locks"),
        (["run.dir=gs://bucket"], "renames and locks"),
        (["teacher.store.path=gs://bucket"], "only s3://"),
        (["teacher.store.path=memory://x"], "only s3://"),
        (["teacher.store.path=s3://key:secret@bucket/x"], "credentials"),
        (["training.checkpoint_copies=az://bucket"], "only s3:// and gs:// are"),
        (["training.checkpoint_copies=gs://key@bucket/x"], "credentials"),
        (["training.checkpoint_copies=s3://key:secret@bucket/x"], "credentials"),
        (["training.checkpoint_copies=/data/copies"], "copies are for object storage"),
        (
            [
                "teacher.store.path=s3://bucket/x",
                "teacher.open.model.name=m",
                "teacher.open.pipeline.resume=false",
            ],
            "set an old store aside",
        ),
        (
            [
                "teacher.store.path=s3://bucket/x",
                "teacher.closed.model.name=m",
                "teacher.closed.endpoint.base_url=http://127.0.0.1:1/v1",
                "teacher.closed.endpoint.mode=batch",
            ],
            "still at the provider",
        ),
        (
            [
                "teacher.store.path=s3://bucket/x",
                "teacher.closed.model.name=m",
                "teacher.closed.endpoint.base_url=http://127.0.0.1:1/v1",
                "teacher.closed.pipeline.resume=false",
            ],
            "set an old store aside",
        ),
        (
            ["teacher.open.model.name=m", "grade.store.path=gs://bucket/x", "grade.open.model.name=m"],
            "only s3://",
        ),
    ],
)
def test_addresses_are_refused_with_the_reason(settings: list[str], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], settings)
    (problem,) = [problem for problem in caught.value.problems if why in problem.what]
    assert problem.where


@pytest.mark.parametrize(
    "teacher",
    [
        ["teacher.open.model.name=m"],
        ["teacher.closed.model.name=m", "teacher.closed.endpoint.base_url=http://127.0.0.1:1/v1"],
    ],
)
def test_a_teacher_s_store_may_be_on_s3(teacher: list[str]) -> None:
    settings = ["teacher.store.path=s3://bucket/x", *teacher]
    paths = RunPaths.from_config(load_config([], settings).config)
    assert str(paths.store) == "s3://bucket/x" and is_remote(paths.store)


@pytest.mark.parametrize("place", ["runs/a", "/data/s3/store", "C:/runs"])
def test_paths_are_not(place: str) -> None:
    load_config([], [f"run.dir={place}"])


def test_copies_of_checkpoints_may_be_on_s3_and_a_trial_has_none() -> None:
    settings = ["run.name=a", "training.checkpoint_copies=s3://bucket/runs"]
    paths = RunPaths.from_config(load_config([], settings).config)
    assert str(paths.checkpoint_copies("sft")) == "s3://bucket/runs/a/sft"
    assert RunPaths.from_config(load_config([], []).config).checkpoint_copies("sft") is None
    trial = TrialPaths.of_trial(paths, SweepPaths.of(paths, "s"), 0, "distill")
    assert trial.checkpoint_copies("distill") is None
