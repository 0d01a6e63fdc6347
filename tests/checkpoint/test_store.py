"""Checkpoints come back bit for bit; whatever is not whole is never loaded."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.checkpoint.store import (
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_directory,
    verify_checkpoint,
)
from raystill.errors import DataError, DiskFault, EnvironmentFault

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def small(step: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(4, 3, generator=generator),
            "bias": torch.randn(3, generator=generator),
        },
        "optimizer": {
            "weight.exp_avg": torch.randn(4, 3, generator=generator),
            "step": torch.tensor(float(step)),
        },
    }


def save(directory: Path, step: int) -> Path:
    return save_checkpoint(directory, step, tensors=small(step), state={"step": step, "order": [3, 1, 2]})


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal type, shape and bits; NaN equals itself."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    bits = [
        tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else None for tensor in (left, right)
    ]
    return bits[0] is None or bits[1] is None or torch.equal(bits[0], bits[1])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
    st.integers(0, 10**9),
)
def test_any_tensors_and_state_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[tuple[torch.dtype, list[int]]],
    state: dict[str, object],
    step: int,
) -> None:
    directory = tmp_path_factory.mktemp("any")
    tensors = {f"t.{i}": (torch.randn(shape) * 10).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    path = save_checkpoint(directory, step, tensors={"other": tensors, "empty": {}}, state=state)
    found = load_checkpoint(path)
    assert found.step == step
    assert found.state == state
    assert found.tensors.keys() == {"other", "empty"}
    assert found.tensors["other"].keys() == tensors.keys()
    assert all(same(found.tensors["other"][name], tensor) for name, tensor in tensors.items())


def test_nan_infinity_and_negative_zero_survive_in_the_optimizer(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    path = save_checkpoint(tmp_path, 1, tensors={"optimizer": {"odd": odd}}, state={})
    assert same(load_checkpoint(path).tensors["optimizer"]["odd"], odd)


def test_views_and_transposed_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(10_000, dtype=torch.float32).view(100, 100)
    tensors = {"row": whole[3], "transposed": whole.t(), "corner": whole[:2, :2], "whole": whole}
    path = save_checkpoint(tmp_path, 1, tensors={"model": tensors}, state={})
    found = load_checkpoint(path).tensors["model"]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (
        path / "model.safetensors"
    ).stat().st_size < 2 * whole.nbytes + 10_000  # no view drags its base in


def test_each_tensor_is_written_once(tmp_path: Path) -> None:
    tensors = {"model": {"w": torch.randn(1000, 100)}, "optimizer": {"m": torch.randn(1000, 100)}}
    path = save_checkpoint(tmp_path, 1, tensors=tensors, state={})
    total = sum(file.stat().st_size for file in path.iterdir())
    assert total < 2 * 400_000 * 1.01 + 2000
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_tied_tensor_must_be_saved_once(tmp_path: Path) -> None:
    tied = torch.randn(3, 3)
    with pytest.raises(DataError, match="'embed' and 'head' are the same tensor"):
        save_checkpoint(tmp_path / "c", 1, tensors={"model": {"embed": tied, "head": tied}}, state={})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["state", "manifest", "a/b", "..", "", "Model"])
def test_a_group_may_not_be_named_like_another_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="can't name a group"):
        save_checkpoint(tmp_path / "c", 1, tensors={name: {}}, state={})
    assert not (tmp_path / "c").exists()


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, tensors=small(), state={"bad": object()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(EnvironmentFault):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, tensors=small(), state={})


def test_a_disk_that_fills_while_tensors_are_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """F14: files of safetensors raise no OSError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = {"model": {"w": torch.zeros(100_000)}}
    save_checkpoint(tmp_path, 1, tensors=tensors, state={})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DiskFault, match="disk is full"):
            save_checkpoint(tmp_path, 2, tensors=tensors, state={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] and latest_valid(
        tmp_path
    ).step == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save_checkpoint(tmp_path, 5, tensors=small(6), state={"again": True})
    assert load_checkpoint(path).state == {"again": True}
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_that_verifies_is_resumed_from(tmp_path: Path) -> None:
    """F17."""
    for step in (1, 20, 3):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000001",
        "step-00000003",
        "step-00000020",
    ]
    assert (latest_valid(tmp_path).step, latest_valid(tmp_path).passed_over) == (20, ())
    weights = step_directory(tmp_path, 20) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = latest_valid(tmp_path)
    assert found.path == step_directory(tmp_path, 3)
    assert [path for path, _ in found.passed_over] == [step_directory(tmp_path, 20)]
    assert "model.safetensors" in found.passed_over[0][1]


def test_foreign_half_written_and_renamed_directories_are_passed_over(tmp_path: Path) -> None:
    """F18."""
    save(tmp_path, 7)
    for foreign in (
        "step-abc",
        "checkpoint-99999",
        ".tmp-abc-step-00000100",
        ".trash-abc-step-00000100",
        "step-9",
    ):
        shutil.copytree(step_directory(tmp_path, 7), tmp_path / foreign)
    (tmp_path / "step-00000098").mkdir()
    (tmp_path / "step-00000097").write_text("a file", encoding="utf-8")
    shutil.copytree(step_directory(tmp_path, 7), step_directory(tmp_path, 99))
    found = latest_valid(tmp_path)
    assert found.step == 7
    reasons = {path.name: reason for path, reason in found.passed_over}
    assert reasons.keys() == {"step-00000097", "step-00000098", "step-00000099"}
    assert "manifest of step 7" in reasons["step-00000099"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_every_flipped_byte_truncation_and_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    """F17, F18."""
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    file, rng = path / name, random.Random(name)
    whole = file.read_bytes()
    for number in range(50):
        offset = rng.randrange(len(whole))
        flipped = bytes([whole[offset] ^ (1 << rng.randrange(8))])
        file.write_bytes(whole[:offset] + (flipped + whole[offset + 1 :] if number % 2 else b""))
        if name == "manifest.json" and still_says_the_same(file.read_bytes(), whole):
            continue
        with pytest.raises(DataError):
            load_checkpoint(path)
        assert latest_valid(tmp_path).step == 1
    file.unlink()
    assert latest_valid(tmp_path).step == 1
    file.write_bytes(whole)
    assert latest_valid(tmp_path).step == 2


def still_says_the_same(raw: bytes, whole: bytes) -> bool:
    """White space may change in a manifest without any harm."""
    try:
        return bool(json.loads(raw) == json.loads(whole))
    except ValueError:
        return False


def test_an_unknown_schema_version_is_named(tmp_path: Path) -> None:
    """I43."""
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(
        json.dumps(manifest | {"schema_version": 9, "new": 1}), encoding="utf-8"
    )
    with pytest.raises(DataError, match="schema version is 9"):
        verify_checkpoint(path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    """F22."""
    tensors = small()
    tensors["model"]["bias"][1] = float("nan")
    path = save_checkpoint(tmp_path, 1, tensors=tensors, state={})
    with pytest.raises(DataError, match="'bias' is not finite"):
        load_checkpoint(path)


def test_a_directory_that_does_not_exist_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []
    assert latest_valid(tmp_path / "none").path is None


def test_a_moved_directory_still_loads(tmp_path: Path) -> None:
    save(tmp_path / "here", 4)
    (tmp_path / "here").rename(tmp_path / "there")
    assert latest_valid(tmp_path / "there").step == 4


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    """F29: the files of later steps look older, and two of them are of the same second."""
    for step, seconds in ((10, 2_000_000_000), (9, 2_100_000_000), (100, 1_000_000_000), (99, 1_000_000_000)):
        path = save(tmp_path, step)
        for file in (*path.iterdir(), path):
            os.utime(file, (seconds, seconds))
    assert [path.name[-3:] for path in list_checkpoints(tmp_path)] == ["009", "010", "099", "100"]
    assert latest_valid(tmp_path).step == 100


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_reports_errors_leaves_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """F40: each flush and rename of a save fails once; the save says so, and nothing half is left."""
    real, failures = getattr(os, call), 0
    for failing in range(1, 40):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save(tmp_path / "run", 1)
        calls = itertools.count(1)

        def fail_at(*arguments: Any, failing: int = failing, calls: Iterator[int] = calls) -> Any:
            if next(calls) == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail_at)
            try:
                save(tmp_path / "run", 2)
            except EnvironmentFault as error:
                assert "the disk reports an error" in error.what
                failures += 1
        found = latest_valid(tmp_path / "run")
        assert found.passed_over == () and load_checkpoint(found.path).step in (1, 2)
        assert {path.name for path in (tmp_path / "run").iterdir()} <= {"step-00000001", "step-00000002"}
        if next(calls) <= failing:  # it has fewer calls than that: this save went through
            assert found.step == 2
            break
    assert failures == failing - 1 > 0
