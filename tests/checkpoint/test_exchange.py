"""Workers that hold parts of a model save together, and one that can't leaves no checkpoint behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from raystill.checkpoint import exchange
from raystill.checkpoint.exchange import PartExchange
from raystill.checkpoint.retention import remove_leftovers
from raystill.checkpoint.store import latest_valid, load_checkpoint, save_checkpoint
from raystill.errors import EnvironmentFault

PARTS = 3


def part(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((2,), float(rank))}}


def publish(directory: Path, first: PartExchange, step: int) -> Path:
    first.open(step)
    return save_checkpoint(
        directory, step, tensors=part(0), state={}, num_parts=PARTS,
        take_parts=lambda target: first.take(step, target),
    )  # fmt: skip


def sides(directory: Path) -> list[PartExchange]:
    return [PartExchange(directory, rank, PARTS, 77) for rank in range(PARTS)]


def test_each_writes_its_part_and_the_first_publishes(tmp_path: Path) -> None:
    first, *others = sides(tmp_path)
    with ThreadPoolExecutor(PARTS) as pool:
        for step in (1, 2):
            left = [pool.submit(other.leave, step, part(rank)) for rank, other in enumerate(others, 1)]
            path = pool.submit(publish, tmp_path, first, step).result()
            assert all(one.result() for one in left)
            assert load_checkpoint(path).tensors["model"]["w"].tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(tmp_path.iterdir()) == [path.with_name("step-00000001"), path]


def test_a_worker_that_can_not_write_ends_the_save_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14."""
    first, well, ill = sides(tmp_path)
    write = exchange.write_part

    def refuse(directory: Path, tensors: object, rank: int, size: int) -> list[Path]:
        if rank == 2:
            raise OSError(28, "No space left on device")
        return write(directory, tensors, rank, size)  # type: ignore[arg-type]

    monkeypatch.setattr(exchange, "write_part", refuse)
    with ThreadPoolExecutor(PARTS) as pool:
        left = [pool.submit(side.leave, 5, part(rank)) for rank, side in ((1, well), (2, ill))]
        with pytest.raises(EnvironmentFault, match="worker 2 could not write its part"):
            publish(tmp_path, first, 5)
        assert left[0].result()
        with pytest.raises(EnvironmentFault, match="disk is full"):
            left[1].result()
    assert latest_valid(tmp_path).path is None
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_others_never_join_is_given_up(tmp_path: Path) -> None:
    """F25: their processes are gone; so is what this save had written."""
    first, other, _ = sides(tmp_path)
    timer = threading.Timer(0.1, first.abandon)
    timer.start()
    with pytest.raises(EnvironmentFault, match="one of them has stopped"):
        publish(tmp_path, first, 5)
    other.abandon()
    with pytest.raises(EnvironmentFault, match="one of them has stopped"):
        other.leave(6, part(1))
    assert latest_valid(tmp_path).path is None


def test_parts_are_taken_once_and_those_of_another_start_never(tmp_path: Path) -> None:
    """A save that fails after it took the parts isn't repeated without them."""
    first, *others = sides(tmp_path)
    dead = PartExchange(tmp_path, 0, PARTS, 76)
    dead.open(5)  # of a start that was killed
    with ThreadPoolExecutor(PARTS) as pool:
        left = [pool.submit(other.leave, 5, part(rank)) for rank, other in enumerate(others, 1)]
        publish(tmp_path, first, 5)
        assert all(one.result() for one in left)
    assert list(dead._place(5).iterdir()) == []
    with pytest.raises(EnvironmentFault, match="went with the save that failed"):
        publish(tmp_path, first, 5)
    assert load_checkpoint(latest_valid(tmp_path).path).step == 5
