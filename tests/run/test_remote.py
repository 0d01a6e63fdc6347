"""Paths and addresses, told apart; stores at addresses are tested in tests/store/test_object_storage.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raystill.errors import EnvironmentFault, RemoteError
from raystill.run.remote import is_address, is_remote, open_place, remote_faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://bucket/x", True), ("gs://b", True), ("/data/s3/x", False), ("a:b/c", False), ("C:/runs", False)],
)
def test_an_address_has_a_scheme(text: str, expected: bool) -> None:
    assert is_address(text) is expected


def test_a_path_is_a_path_and_an_address_walks_like_one() -> None:
    assert open_place("~/store") == Path.home() / "store" and not is_remote(open_place("store"))
    place = open_place("s3://bucket/runs/store")
    part = place / "partitions" / "p0000" / "part-1.parquet"
    assert is_remote(part) and str(part) == "s3://bucket/runs/store/partitions/p0000/part-1.parquet"
    assert part.relative_to(place).as_posix() == "partitions/p0000/part-1.parquet"
    assert open_place(str(place.absolute())) == place.resolve() == place


@pytest.mark.parametrize(
    ("package", "address", "extra"), [("s3fs", "s3://bucket/x", "s3"), ("gcsfs", "gs://bucket/x", "gcs")]
)
def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, package: str, address: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFault) as caught:
        open_place(address)
    assert f"raystill[{extra}]" in caught.value.problems[0].fix


def test_what_the_storage_refuses_is_named_and_a_local_error_passes(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="denied") as caught, remote_faults(open_place("s3://bucket/x")):
        raise PermissionError("denied")
    assert caught.value.problems[0].where == "s3://bucket/x"
    with pytest.raises(FileNotFoundError), remote_faults(open_place("s3://bucket/x")):
        raise FileNotFoundError
    with pytest.raises(PermissionError), remote_faults(tmp_path):
        raise PermissionError
