"""Checkpoints in parts are read as if one worker had written them, whatever the number of parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from raystill.checkpoint.compare import diff_checkpoints
from raystill.checkpoint.parts import GroupReader, open_group, part_names, write_part
from raystill.checkpoint.store import latest_valid, load_checkpoint, save_checkpoint
from raystill.errors import DataError
from raystill.run.manifest import FileRecord, record_files


def cut(tensors: dict[str, torch.Tensor], part: int, num_parts: int) -> dict[str, torch.Tensor]:
    """What one of `num_parts` workers holds, cut as FSDP2 does; scalars are the first one's."""
    mine = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 0:
            if part == 0:
                mine[name] = tensor
            continue
        pieces = torch.chunk(tensor, num_parts)
        mine[name] = pieces[part] if part < len(pieces) else tensor[:0]
    return mine


def save_in_parts(directory: Path, step: int, tensors: dict[str, torch.Tensor], num_parts: int) -> Path:
    def take(target: Path) -> dict[str, FileRecord]:
        files = []
        for part in range(1, num_parts):
            files += write_part(target, {"model": cut(tensors, part, num_parts)}, part, num_parts)
        return record_files(target, files)

    first = {"model": cut(tensors, 0, num_parts)}
    return save_checkpoint(
        directory, step, tensors=first, state={"step": step}, num_parts=num_parts, take_parts=take
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=4))
def test_any_cut_comes_back_whole(
    tmp_path_factory: pytest.TempPathFactory, num_parts: int, shapes: list[list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("parts")
    tensors = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    path = save_in_parts(directory, 3, tensors, num_parts)
    found = load_checkpoint(path).tensors["model"]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    whole = save_checkpoint(directory, 4, tensors={"model": tensors}, state={"step": 3})
    assert diff_checkpoints(path, whole).is_equal


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_any_number_of_readers_gets_the_rows_that_each_holds(
    tmp_path_factory: pytest.TempPathFactory, num_parts: int, num_readers: int, length: int
) -> None:
    """Whoever wrote the parts: together the readers have the whole, each the rows that FSDP2 gives it."""
    directory = tmp_path_factory.mktemp("parts")
    tensor = torch.randn(length, 3)
    path = save_in_parts(directory, 3, {"w": tensor, "step": torch.tensor(7.0)}, num_parts)
    with open_group(path, "model", num_parts) as reader:
        assert (reader.shape("w"), reader.shape("step")) == ((length, 3), ())
        begin = 0
        for rank in range(num_readers):
            wanted = cut({"w": tensor}, rank, num_readers)["w"]
            assert torch.equal(reader.rows("w", begin, begin + len(wanted)), wanted)
            begin += len(wanted)
        assert begin == length


class CountingStream:
    """A file of safetensors that notes how many numbers were taken out of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.taken = 0

    def keys(self) -> list[str]:
        return list(self._stream.keys())

    def get_slice(self, name: str) -> Any:
        return CountingSlice(self, self._stream.get_slice(name))


class CountingSlice:
    def __init__(self, owner: CountingStream, piece: Any) -> None:
        self._owner = owner
        self.get_shape = piece.get_shape
        self._piece = piece

    def __getitem__(self, rows: slice) -> torch.Tensor:
        found: torch.Tensor = self._piece[rows]
        self._owner.taken += found.numel()
        return found


def test_a_reader_of_some_rows_leaves_the_others_on_the_disk(tmp_path: Path) -> None:
    path = save_in_parts(tmp_path, 1, {"w": torch.randn(400, 10)}, 4)
    streams = [CountingStream(safe_open(path / name, framework="pt")) for name in part_names("model", 4)]
    GroupReader(streams).rows("w", 150, 250)
    assert [stream.taken for stream in streams] == [0, 500, 500, 0]


def test_what_was_read_does_not_keep_the_files(tmp_path: Path) -> None:
    """A checkpoint that is deleted gives its space back, also to the run that was resumed from it."""
    path = save_in_parts(tmp_path, 1, {"w": torch.randn(400, 10), "step": torch.tensor(7.0)}, 2)
    with open_group(path, "model", 2) as reader:
        kept = [reader.tensor("step"), reader.tensor("w"), reader.rows("w", 0, 10), reader.rows("w", 0, 0)]
    assert len(kept) == 4
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_every_byte_is_written_once_and_every_part_is_needed(tmp_path: Path) -> None:
    """F18."""
    tensors = {"weight": torch.randn(300, 100), "step": torch.tensor(7.0)}
    save_in_parts(tmp_path, 1, tensors, 1)
    path = save_in_parts(tmp_path, 2, tensors, 3)
    names = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"]
    assert part_names("model", 3)[:2] == names
    assert {file.name for file in path.iterdir()} == {*part_names("model", 3), "state.json", "manifest.json"}
    assert sum((path / name).stat().st_size for name in part_names("model", 3)) < 120_000 * 1.01
    assert latest_valid(tmp_path).step == 2
    (path / names[1]).unlink()
    assert latest_valid(tmp_path).step == 1
    with pytest.raises(DataError, match="model-00002-of-00003"):
        load_checkpoint(path)
