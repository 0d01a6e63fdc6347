"""A run whose machine is gone for good goes on elsewhere from the copies of its checkpoints, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from raystill.checkpoint.store import latest_valid
from raystill.errors import EnvironmentFault, RemoteError
from raystill.run.remote import list_folders
from raystill.testing.object_storage import object_storage
from raystill.train.group import WorkerGroup
from raystill.train.stage import DISTILL_STAGE
from raystill.train.worker import train_worker

STEPS = {"steps": 20, "save_every": 3}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_storage() as address:
        yield address


class AskToStop:
    """A reporter that asks the run to stop once a step is reached."""

    def __init__(self, world: Any, config: Any, step: int) -> None:
        self.request, self.step = world.paths(config).stop_request("distill"), step

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.step:
            self.request.touch()


def copied_steps(world: Any, config: Any) -> list[int]:
    place = world.paths(config).checkpoint_copies("distill")
    return [int(name.removeprefix("step-")) for name in list_folders(place)]


def test_a_run_whose_directory_is_gone_goes_on_from_the_copies(world: Any, bucket: str) -> None:
    """F28: the machine was taken away with its disk; the notice had the step saved and copied."""
    whole = world.config("whole", training=STEPS)
    lost = world.config("lost", training={**STEPS, "checkpoint_copies": f"{bucket}/runs"})
    world.train(whole)
    with pytest.raises(EnvironmentFault, match="after step 9, which is saved"):
        train_worker(world.job(lost), WorkerGroup(), AskToStop(world, lost, 9))
    assert copied_steps(world, lost) == [2, 3, 5, 6, 9]  # milestones, and the three most recent
    shutil.rmtree(world.paths(lost).root)
    world.train(lost)
    assert world.weights(lost) == world.weights(whole)
    assert [line["step"] for line in world.metrics(lost)][-1] == 20
    assert copied_steps(world, lost) == [2, 5, 6, 9, 10, 12, 15, 18, 20]
    DISTILL_STAGE.discard(lost, world.paths(lost))
    assert copied_steps(world, lost) == []


def test_an_outage_stops_no_step_but_the_end_says_so(
    world: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config("outage", training={**STEPS, "checkpoint_copies": f"{bucket}/runs"})

    def refuse(self: Any, rules: Any) -> None:
        raise RemoteError("the object storage refuses: slow down")

    with monkeypatch.context() as patch:
        patch.setattr("raystill.checkpoint.copies.CheckpointCopies.follow", refuse)
        with pytest.raises(RemoteError, match="slow down") as caught:
            world.train(config)
    assert caught.value.exit_code == 5
    assert latest_valid(world.paths(config).checkpoints("distill")).step == 20
    log = [json.loads(line) for line in world.paths(config).run_log.read_text().splitlines()]
    assert sum("no copy of the checkpoints for now" in line.get("message", "") for line in log) > 5
    world.train(config)
    assert copied_steps(world, config) == [2, 5, 6, 9, 10, 12, 15, 18, 20]
