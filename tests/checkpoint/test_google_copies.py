"""Copies of checkpoints on Google's storage: what they promise on S3, they promise there."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

from raystill.checkpoint.copies import CheckpointCopies, require_reachable
from raystill.checkpoint.pins import load_pins, pin
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import latest_valid, save_checkpoint, step_directory
from raystill.errors import RemoteError
from raystill.run.remote import list_folders, object_sizes, open_place
from raystill.testing.object_storage import google_storage

RULES = RetentionRules(total_steps=400, max_recent=2, min_free_gb=0.0)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with google_storage() as address:
        yield address


@pytest.fixture
def copies(bucket: str, tmp_path: Path) -> CheckpointCopies:
    return CheckpointCopies(open_place(f"{bucket}/{uuid.uuid4().hex}"), tmp_path / "checkpoints")


def save(copies: CheckpointCopies, *steps: int) -> None:
    for step in steps:
        tensors = {"model": {"w": torch.full((8,), float(step))}, "optimizer": {}}
        save_checkpoint(copies.directory, step, tensors=tensors, state={"step": step})
        apply_retention(copies.directory, RULES, current=step)


def again(copies: CheckpointCopies) -> CheckpointCopies:
    """The copies as another process, perhaps on another machine, sees them."""
    return CheckpointCopies(copies.place, copies.directory)


def folders(copies: CheckpointCopies) -> list[int]:
    return [int(name.removeprefix("step-")) for name in list_folders(copies.place)]


def test_copies_follow_the_rules_come_back_and_go(copies: CheckpointCopies) -> None:
    require_reachable(copies.place)
    for step in (10, 40, 50, 60, 70):
        save(copies, step)
        assert copies.follow(RULES) == (step,)
    pin(copies.directory, 60)
    save(copies, 80, 90)
    copies.follow(RULES)
    assert folders(copies) == [40, 60, 80, 90]  # 40 is a milestone
    assert copies.inspect().whole == (40, 60, 80, 90) and copies.inspect().missing == ()
    local = {path.name: path.read_bytes() for path in step_directory(copies.directory, 90).iterdir()}
    shutil.rmtree(copies.directory)
    assert again(copies).fetch_newer() == [] and load_pins(copies.directory) == {60}
    fetched = step_directory(copies.directory, 90)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == local
    again(copies).discard()
    assert folders(copies) == [] and object_sizes(copies.place) == {}


def test_a_damaged_copy_is_passed_over(copies: CheckpointCopies) -> None:
    """F17, F18."""
    save(copies, 5, 6)
    copies.follow(RULES)
    (step_directory(copies.place, 6) / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors" in again(copies).inspect().damaged[6]
    shutil.rmtree(copies.directory)
    notes = again(copies).fetch_newer()
    assert len(notes) == 1 and "copy of step 6 was passed over" in notes[0]
    assert latest_valid(copies.directory).step == 5


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(RemoteError, match="object storage refuses") as caught:
        require_reachable(open_place("gs://no-such-bucket-anywhere/run/sft"))
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.problems[0].fix
