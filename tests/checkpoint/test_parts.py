"""Checkpoints in parts are read as if one worker had written them, whatever the number of parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.checkpoint.compare import diff_checkpoints
from raystill.checkpoint.parts import part_names, write_part
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
