"""Manifests: what identifies content, and checking files against them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.errors import DataError
from raystill.run.manifest import (
    Manifest,
    check_files,
    fingerprint_of,
    load_manifest,
    record_files,
    save_manifest,
    verify_files,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert fingerprint_of(value) == fingerprint_of(dict(reversed(value.items())))
    assert fingerprint_of(value) != fingerprint_of([value])


def build(directory: Path) -> Manifest:
    (directory / "deep").mkdir()
    paths = [directory / "a.txt", directory / "deep" / "b.bin"]
    paths[0].write_text("a", encoding="utf-8")
    paths[1].write_bytes(bytes(1000))
    return Manifest(
        stage="prepare", fingerprint="f", config={"x": 1}, inputs={}, files=record_files(directory, paths)
    )


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    assert load_manifest(tmp_path) is None
    manifest = build(tmp_path)
    save_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest
    assert manifest.files.keys() == {"a.txt", "deep/b.bin"}
    verify_files(tmp_path, manifest)


def test_sizes_are_a_cheap_check_and_checksums_a_full_one(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    (tmp_path / "deep" / "b.bin").write_bytes(bytes(999) + b"\x01")
    check_files(tmp_path, manifest)
    with pytest.raises(DataError, match=r"b\.bin has changed"):
        verify_files(tmp_path, manifest)
    (tmp_path / "deep" / "b.bin").write_bytes(bytes(999))
    for check in (check_files, verify_files):
        with pytest.raises(DataError, match=r"b\.bin has 999 bytes"):
            check(tmp_path, manifest)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.txt is missing"):
        check_files(tmp_path, manifest)
