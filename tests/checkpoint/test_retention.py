"""Retention on disk: only our own checkpoints go, damaged and pinned ones are told apart, room is made."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from raystill.checkpoint.pins import pin
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.relief import make_room
from raystill.checkpoint.retention import apply_retention, preview_retention, remove_leftovers
from raystill.checkpoint.store import list_checkpoints, save_checkpoint, step_directory, step_of
from raystill.errors import DataError, EnvironmentFault
from raystill.run.disk import free_bytes, require_space


def rules(total: int = 10_000, recent: int = 1, least: float = 0.0) -> RetentionRules:
    return RetentionRules(total_steps=total, max_recent=recent, min_free_gb=least)


def save(directory: Path, step: int) -> None:
    save_checkpoint(directory, step, tensors={"model": {"w": torch.zeros(8)}}, state={})


def test_on_disk_only_our_own_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (5, 10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "checkpoint-15").mkdir()
    (tmp_path / ".trash-abc-step-00000001").mkdir()
    (tmp_path / ".tmp-abc-step-00000050").mkdir()
    result = apply_retention(tmp_path, rules(100), current=40)
    assert result.deleted == (5, 20)
    assert result.failed == ()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [10, 30, 40]
    assert {path.name for path in tmp_path.iterdir()} - {p.name for p in list_checkpoints(tmp_path)} == {
        "notes.txt", "checkpoint-15"
    }  # fmt: skip


def test_a_checkpoint_that_can_not_be_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 6, 7):
        save(tmp_path, step)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    monkeypatch.setattr("raystill.checkpoint.retention.remove_leftovers", lambda directory: 0)
    result = apply_retention(tmp_path, rules(1000), current=7)
    assert result.deleted == ()
    assert [reason for _, reason in result.failed] == ["Permission denied", "Permission denied"]


def test_retention_without_a_directory_does_nothing(tmp_path: Path) -> None:
    assert apply_retention(tmp_path / "none", rules(1)).plan.keep == ()
    assert remove_leftovers(tmp_path) == 0


def test_a_disk_that_is_too_small_stops_the_save_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I35."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3 * 2**30))
    assert free_bytes(tmp_path / "not" / "yet") == 3 * 2**30
    require_space(tmp_path / "not" / "yet", 2 * 2**30)
    with pytest.raises(EnvironmentFault, match=r"3\.30 GiB needed, 3\.00 GiB free") as caught:
        require_space(tmp_path, 3 * 2**30)
    assert caught.value.exit_code == 4


def steps_in(directory: Path) -> list[int | None]:
    return [step_of(path) for path in list_checkpoints(directory)]


def test_pinned_checkpoints_stay_and_an_unreadable_list_deletes_nothing(tmp_path: Path) -> None:
    for step in (5, 6, 7):
        save(tmp_path, step)
    assert pin(tmp_path, 5)
    assert apply_retention(tmp_path, rules(), current=7).deleted == (6,)
    save(tmp_path, 8)
    (tmp_path / "pins.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="nothing is deleted"):
        apply_retention(tmp_path, rules(), current=8)
    assert steps_in(tmp_path) == [5, 7, 8]


def test_a_torn_checkpoint_takes_no_slot_and_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    for step in (5, 6, 7):
        save(tmp_path, step)
    (step_directory(tmp_path, 6) / "model.safetensors").write_bytes(b"torn")
    step_directory(tmp_path, 99).mkdir()
    plan = preview_retention(tmp_path, rules(recent=2), current=7)
    assert (plan.keep, plan.delete) == ((5, 7), (6,))
    apply_retention(tmp_path, rules(recent=2), current=7)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000005", "step-00000007", "step-00000099"}


def test_the_best_by_the_stored_metric_stay(tmp_path: Path) -> None:
    losses = {5: 0.4, 6: 0.2, 7: float("nan"), 8: 0.3, 9: 0.5}
    for step, loss in losses.items():
        tensors = {"model": {"w": torch.zeros(8)}}
        save_checkpoint(tmp_path, step, tensors=tensors, state={}, metrics={"eval/loss": loss, "text": "x"})
    best = RetentionRules(total_steps=10_000, max_recent=1, min_free_gb=0.0, keep_best=2)
    plan = preview_retention(tmp_path, best, current=9)
    assert plan.keep == (6, 8, 9)
    assert plan.reasons[6] == ("best 1 by eval/loss",)
    assert plan.reasons[9] == ("newest", "recent")


def test_room_is_made_in_order_and_refused_where_that_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15, I35."""
    for step in (5, 6, 7, 8, 9):
        save(tmp_path, step)
    pin(tmp_path, 5)
    usage = namedtuple("usage", "total used free")

    def free_grows(path: Path) -> usage:
        return usage(0, 0, 100 * (6 - len(steps_in(tmp_path))))

    monkeypatch.setattr(shutil, "disk_usage", free_grows)
    assert make_room(tmp_path, rules(recent=3), 90) == ()
    assert make_room(tmp_path, rules(recent=3), 110) == (6,)
    assert make_room(tmp_path, rules(recent=3), 270, in_use={8}) == (7,) or steps_in(tmp_path) == [5, 8, 9]
    with pytest.raises(EnvironmentFault, match="not enough disk"):
        make_room(tmp_path, rules(recent=3), 10_000)
    assert 5 in steps_in(tmp_path)
    assert 9 in steps_in(tmp_path)
