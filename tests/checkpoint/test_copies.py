"""Copies on object storage follow the local checkpoints, come back when those are gone, and survive kills."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raystill.checkpoint.copies import CheckpointCopies, require_reachable
from raystill.checkpoint.pins import load_pins, pin, unpin
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import latest_valid, load_checkpoint, save_checkpoint, step_directory
from raystill.errors import ConfigError, RemoteError
from raystill.run.remote import list_folders, object_sizes, open_place
from raystill.testing.object_storage import google_storage, object_storage

RULES = RetentionRules(total_steps=400, max_recent=2, min_free_gb=0.0)
SCRIPT = Path(__file__).with_name("crash_copier.py")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_storage() as address:
        yield address


@pytest.fixture
def copies(bucket: str, tmp_path: Path) -> CheckpointCopies:
    return CheckpointCopies(open_place(f"{bucket}/{uuid.uuid4().hex}"), tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def google_bucket() -> Iterator[str]:
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with google_storage() as address:
        yield address


@pytest.fixture
def google_copies(google_bucket: str, tmp_path: Path) -> CheckpointCopies:
    return CheckpointCopies(open_place(f"{google_bucket}/{uuid.uuid4().hex}"), tmp_path / "checkpoints")


def save(copies: CheckpointCopies, *steps: int) -> None:
    for step in steps:
        tensors = {"model": {"w": torch.full((8,), float(step))}, "optimizer": {}}
        save_checkpoint(copies.directory, step, tensors=tensors, state={"step": step})
        apply_retention(copies.directory, RULES, current=step)


def again(copies: CheckpointCopies) -> CheckpointCopies:
    """The copies as another process, perhaps on another machine, sees them."""
    return CheckpointCopies(copies.place, copies.directory, copies.origin)


def folders(copies: CheckpointCopies) -> list[int]:
    return [int(name.removeprefix("step-")) for name in list_folders(copies.place)]


def test_copies_follow_the_rules_and_the_newest_comes_back(copies: CheckpointCopies) -> None:
    for step in (10, 40, 50, 60, 70):
        save(copies, step)
        assert copies.follow(RULES) == (step,)
    assert folders(copies) == [40, 60, 70]  # 40 is a milestone
    local = {path.name: path.read_bytes() for path in step_directory(copies.directory, 70).iterdir()}
    shutil.rmtree(copies.directory)
    assert again(copies).fetch_newer() == []
    assert [path.name for path in copies.directory.iterdir()] == ["step-00000070"]
    fetched = step_directory(copies.directory, 70)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == local
    later = again(copies)
    save(later, 80)
    assert later.follow(RULES) == (80,)
    assert folders(copies) == [40, 70, 80]


def test_nothing_is_fetched_over_what_is_as_new(copies: CheckpointCopies) -> None:
    save(copies, 5, 6)
    copies.follow(RULES)
    save(copies, 7)
    before = step_directory(copies.directory, 7).stat().st_ino
    assert again(copies).fetch_newer() == [] and latest_valid(copies.directory).step == 7
    assert step_directory(copies.directory, 7).stat().st_ino == before


def test_a_damaged_copy_is_passed_over_and_a_damaged_checkpoint_is_replaced(copies: CheckpointCopies) -> None:
    """F17, F18."""
    save(copies, 5, 6)
    copies.follow(RULES)
    (step_directory(copies.place, 6) / "model.safetensors").write_bytes(b"torn")
    shutil.rmtree(copies.directory)
    notes = again(copies).fetch_newer()
    assert len(notes) == 1 and "copy of step 6 was passed over: model.safetensors" in notes[0]
    assert latest_valid(copies.directory).step == 5
    (step_directory(copies.directory, 5) / "state.json").write_text("{}", encoding="utf-8")
    again(copies).fetch_newer()
    assert load_checkpoint(step_directory(copies.directory, 5)).state == {"step": 5}


def test_an_outage_is_made_up_for_by_the_next_save(
    copies: CheckpointCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("raystill.checkpoint.copies.upload_file", refuse)
        save(copies, 40)
        with pytest.raises(RemoteError):
            copies.follow(RULES)
    assert folders(copies) == []
    save(copies, 50)
    assert copies.follow(RULES) == (40, 50) and folders(copies) == [40, 50]


def refuse(file: Path, path: Path) -> None:
    raise RemoteError("the object storage refuses: slow down")


def test_pins_go_along_and_come_back(copies: CheckpointCopies) -> None:
    save(copies, 5, 6)
    pin(copies.directory, 5)
    copies.follow(RULES)
    save(copies, 7, 8, 9)
    copies.follow(RULES)
    assert folders(copies) == [5, 8, 9]
    shutil.rmtree(copies.directory)
    other = again(copies)
    other.fetch_newer()
    assert load_pins(copies.directory) == {5}
    unpin(copies.directory, 5)
    other.follow(RULES)
    assert folders(copies) == [8, 9]


def test_copies_of_other_settings_are_refused_and_discarded(copies: CheckpointCopies, tmp_path: Path) -> None:
    """F32."""
    copies.origin = tmp_path / "started.json"
    copies.origin.write_text(json.dumps({"config": {"training.steps": 400}, "inputs": {"generate": "a"}}))
    save(copies, 5)
    copies.follow(RULES)
    shutil.rmtree(copies.directory)
    copies.origin.write_text(json.dumps({"config": {"training.steps": 500}, "inputs": {"generate": "a"}}))
    with pytest.raises(ConfigError, match=r"training\.steps: 400 -> 500"):
        again(copies).fetch_newer()
    again(copies).discard()
    assert folders(copies) == [] and object_sizes(copies.place) == {}
    assert again(copies).fetch_newer() == [] and latest_valid(copies.directory).path is None


def test_a_bucket_that_is_not_there_is_named_at_once(bucket: str) -> None:
    require_reachable(None)
    require_reachable(open_place(f"{bucket}/run/sft"))
    assert object_sizes(open_place(f"{bucket}/run/sft")) == {}
    with pytest.raises(RemoteError, match="object storage refuses"):
        require_reachable(open_place("s3://no-such-bucket-anywhere/run/sft"))


def test_kill_9_at_every_step_leaves_whole_copies_and_the_next_start_makes_up(
    bucket: str, tmp_path: Path
) -> None:
    """F16."""
    address = f"{bucket}/{uuid.uuid4().hex}"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), address, str(tmp_path)],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    # Two saves of two files; the folder of a new step is emptied first, and step 1 goes in the end.
    assert json.loads(done.stdout) == {
        "copies:file_uploaded": 4, "copies:published": 2, "copies:manifest_deleted": 3
    }  # fmt: skip
    rules = RetentionRules(total_steps=400, max_recent=1, min_free_gb=0.0)
    for directory in sorted(tmp_path.iterdir()):
        place = open_place(f"{address}/{directory.name}")
        copied = int((directory / "copied").read_text()) if (directory / "copied").exists() else 0
        rescued = CheckpointCopies(place, tmp_path.with_name("rescued") / directory.name)
        assert rescued.fetch_newer() == []
        found = latest_valid(rescued.directory)
        assert (found.step or 0) >= copied and found.passed_over == ()
        after = CheckpointCopies(place, directory)
        after.follow(rules)
        newest = latest_valid(directory).step
        assert list_folders(place) == ([f"step-{newest:08d}"] if newest else [])
        assert object_sizes(step_directory(place, newest or 0)).keys() == (
            {"manifest.json", "model.safetensors", "state.json"} if newest else set()
        )


def test_on_google_they_follow_the_rules_come_back_and_go(google_copies: CheckpointCopies) -> None:
    require_reachable(google_copies.place)
    for step in (10, 40, 50, 60, 70):
        save(google_copies, step)
        assert google_copies.follow(RULES) == (step,)
    pin(google_copies.directory, 60)
    save(google_copies, 80, 90)
    google_copies.follow(RULES)
    assert folders(google_copies) == [40, 60, 80, 90]  # 40 is a milestone
    assert google_copies.inspect().whole == (40, 60, 80, 90) and google_copies.inspect().missing == ()
    local = {path.name: path.read_bytes() for path in step_directory(google_copies.directory, 90).iterdir()}
    shutil.rmtree(google_copies.directory)
    assert again(google_copies).fetch_newer() == [] and load_pins(google_copies.directory) == {60}
    fetched = step_directory(google_copies.directory, 90)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == local
    again(google_copies).discard()
    assert folders(google_copies) == [] and object_sizes(google_copies.place) == {}


def test_on_google_a_damaged_copy_is_passed_over(google_copies: CheckpointCopies) -> None:
    """F17, F18."""
    save(google_copies, 5, 6)
    google_copies.follow(RULES)
    (step_directory(google_copies.place, 6) / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors" in again(google_copies).inspect().damaged[6]
    shutil.rmtree(google_copies.directory)
    notes = again(google_copies).fetch_newer()
    assert len(notes) == 1 and "copy of step 6 was passed over" in notes[0]
    assert latest_valid(google_copies.directory).step == 5


def test_on_google_a_bucket_that_is_not_there_is_named(google_bucket: str) -> None:
    with pytest.raises(RemoteError, match="object storage refuses") as caught:
        require_reachable(open_place("gs://no-such-bucket-anywhere/run/sft"))
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.problems[0].fix
