"""Readings of filesystems, and the answer to "may I write N bytes here?"."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from raystill.errors import EnvironmentFault
from raystill.run.disk import free_bytes, has_room, read_filesystems, require_space

Usage = namedtuple("Usage", "total used free")


def test_each_filesystem_is_read_once_with_all_its_uses(tmp_path: Path) -> None:
    readings = read_filesystems({"run": tmp_path, "store": tmp_path / "not" / "yet", "kernel": Path("/proc")})
    assert [reading.uses for reading in readings] == [("run", "store"), ("kernel",)]
    assert readings[0].path == tmp_path and 0 < readings[0].free_bytes <= readings[0].total_bytes
    assert readings[0].free_gb == readings[0].free_bytes / 2**30


def test_room_is_asked_with_a_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1100))
    assert free_bytes(tmp_path / "new") == 1100
    assert has_room(tmp_path, 1000) and not has_room(tmp_path, 1001)
    require_space(tmp_path, 1000)
    with pytest.raises(EnvironmentFault, match=r"0\.00 MiB needed, 0\.00 MiB free") as caught:
        require_space(tmp_path, 2000, fix="buy a disk")
    assert "buy a disk" in str(caught.value) and caught.value.exit_code == 4
