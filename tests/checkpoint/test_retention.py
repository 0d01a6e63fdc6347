"""The promise of retention, driven by random histories of saves, restarts and disk pressure."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.checkpoint.retention import (
    RELIEF,
    RetentionPlan,
    apply_retention,
    free_bytes,
    milestone_steps,
    plan_retention,
    remove_leftovers,
    require_space,
)
from raystill.checkpoint.store import list_checkpoints, save_checkpoint, step_of
from raystill.errors import EnvironmentFault

PLENTY = 1e9


def plan(
    steps: list[int], *, total: int = 1000, recent: int = 3, free: float = PLENTY, least: float = 0.0,
    current: int | None = None, in_use: tuple[int, ...] = (),
) -> RetentionPlan:  # fmt: skip
    return plan_retention(
        dict.fromkeys(steps, 1.0), total_steps=total, max_recent=recent, free_gb=free, min_free_gb=least,
        current=current, in_use=in_use,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1000, (100, 250, 500, 750, 900, 1000)),
        (1500, (150, 375, 750, 1125, 1350, 1500)),
        (7, (1, 2, 4, 6, 7)),
        (1, (1,)),
        (0, ()),
    ],
)
def test_milestones_are_rounded_up(total: int, expected: tuple[int, ...]) -> None:
    assert milestone_steps(total) == expected


@given(st.integers(1, 10**9))
def test_milestones_are_exact_ceilings(total: int) -> None:
    steps = milestone_steps(total)
    assert steps[-1] == total
    assert all(0 < step <= total for step in steps)
    for percent in (10, 25, 50, 75, 90, 100):
        assert any(step * 100 >= total * percent > (step - 1) * 100 for step in steps)


def test_milestones_take_no_recent_slot() -> None:
    assert plan([50, 100, 150, 200, 250, 300], current=300).keep == (100, 150, 200, 250, 300)
    assert plan([50, 60, 70, 80, 90, 100], current=100).keep == (70, 80, 90, 100)


def test_the_first_seeds_example() -> None:
    on_disk: list[int] = []
    for step in sorted({*range(100, 1501, 100), *milestone_steps(1500)}):
        on_disk = list(plan([*on_disk, step], total=1500, current=step).keep)
    assert on_disk == [150, 375, 750, 1125, 1200, 1300, 1350, 1400, 1500]


def test_without_a_save_at_the_milestone_the_first_one_after_it_stands_for_it() -> None:
    on_disk: list[int] = []
    for step in range(70, 1001, 70):
        on_disk = list(plan([*on_disk, step], recent=1, current=step).keep)
    assert on_disk == [140, 280, 560, 770, 910, 980]


def test_pressure_lets_the_recent_ones_go_one_by_one() -> None:
    steps = [610, 620, 630, 640]
    for free, kept in ((10.0, 4), (9.9, 1), (9.0, 1)):
        found = plan(steps, total=10_000, recent=4, free=free, least=10.0, current=640)
        assert len(found.keep) == kept
    relieved = plan_retention(
        dict.fromkeys(steps, 2.5),
        total_steps=10_000,
        max_recent=4,
        free_gb=9.0,
        min_free_gb=10.0,
        current=640,
    )
    assert relieved.keep == (630, 640)
    assert 9.0 + 2.5 < 10.0 * RELIEF <= 9.0 + 2 * 2.5


def test_what_goes_anyway_counts_as_room() -> None:
    found = plan([610, 620, 630, 640], total=10_000, recent=2, free=9.0, least=9.1, current=640)
    assert found.keep == (630, 640)


def test_pressure_never_takes_milestones_the_current_or_what_is_in_use() -> None:
    found = plan([100, 150, 200, 250, 300], recent=3, free=0.0, least=100.0, current=300, in_use=(150,))
    assert found.keep == (100, 150, 250, 300)


def test_leftovers_of_an_abandoned_continuation_do_not_starve_new_checkpoints() -> None:
    assert plan([900, 1000, 1100, 1200, 110, 120, 130], total=5000, current=130).keep == (110, 120, 130)


histories = st.lists(
    st.tuples(
        st.sampled_from(["save", "restart", "lose"]),
        st.floats(0, 40),  # free space before this event
        st.integers(1, 30),  # steps to the next save
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(histories, st.integers(20, 400), st.integers(1, 5), st.floats(0, 30), st.booleans())
def test_the_promise_holds_over_any_history(
    history: list[tuple[str, float, int]], total: int, recent: int, least: float, forced: bool
) -> None:
    """Restarts lose all memory; only the steps on disk carry over."""
    disk: dict[int, float] = {}
    step, resume_point = 0, None
    for event, free, stride in history:
        if event == "restart":
            step = max(disk, default=0)
            resume_point = step or None
            continue
        if event == "lose" and disk:  # the newest turns out damaged: training falls back behind it
            alive = sorted(disk)[:-1]
            step = alive[-1] if alive else 0
            resume_point = step or None
            continue
        wanted = [m for m in milestone_steps(total) if step < m <= step + stride]
        step = min(wanted[0] if forced and wanted else step + stride, total)
        disk[step] = 1.5
        before = dict(disk)
        in_use = (resume_point,) if resume_point in disk else ()
        result = plan_retention(
            disk,
            total_steps=total,
            max_recent=recent,
            free_gb=free,
            min_free_gb=least,
            current=step,
            in_use=in_use,
        )
        assert sorted((*result.keep, *result.delete)) == sorted(before)
        assert not set(result.keep) & set(result.delete)
        assert step in result.keep
        assert set(in_use) <= set(result.keep)
        alive = [s for s in sorted(before) if s <= step]
        stands_for = {next(s for s in alive if s >= m) for m in milestone_steps(total) if m <= step}
        assert stands_for <= set(result.keep)
        others = [s for s in alive if s not in stands_for]
        kept_recent = [s for s in others if s in result.keep and s not in {step, *in_use}]
        assert len(kept_recent) <= recent
        if free >= least:
            assert set(others[-recent:]) <= set(result.keep)
        freed = free + 1.5 * len(result.delete)
        assert free >= least or freed >= least * RELIEF or len(kept_recent) <= 1
        if free < least and result.delete:  # no more is given up than relief needs
            last_extra = [s for s in result.delete if s in others[-recent:]]
            if last_extra:
                assert freed - 1.5 < least * RELIEF
        assert plan_retention(
            dict.fromkeys(result.keep, 1.5), total_steps=total, max_recent=recent, free_gb=1e9,
            min_free_gb=least, current=step, in_use=in_use,
        ).delete == ()  # fmt: skip
        disk = {s: 1.5 for s in result.keep}


def save(directory: Path, step: int) -> None:
    save_checkpoint(directory, step, tensors={"model": {"w": torch.zeros(8)}}, state={})


def test_on_disk_only_our_own_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (5, 10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "checkpoint-15").mkdir()
    (tmp_path / ".trash-abc-step-00000001").mkdir()
    (tmp_path / ".tmp-abc-step-00000050").mkdir()
    result = apply_retention(tmp_path, total_steps=100, max_recent=1, min_free_gb=0.0, current=40)
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
    result = apply_retention(tmp_path, total_steps=1000, max_recent=1, min_free_gb=0.0, current=7)
    assert result.deleted == ()
    assert [reason for _, reason in result.failed] == ["Permission denied", "Permission denied"]


def test_retention_without_a_directory_does_nothing(tmp_path: Path) -> None:
    assert apply_retention(tmp_path / "none", total_steps=1, max_recent=1, min_free_gb=0.0).plan.keep == ()
    assert remove_leftovers(tmp_path) == 0


def test_a_disk_that_is_too_small_stops_the_save_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3 * 2**30))
    assert free_bytes(tmp_path / "not" / "yet") == 3 * 2**30
    require_space(tmp_path / "not" / "yet", 2 * 2**30)
    with pytest.raises(EnvironmentFault, match=r"3\.30 GiB needed, 3\.00 GiB free") as caught:
        require_space(tmp_path, 3 * 2**30)
    assert caught.value.exit_code == 4
