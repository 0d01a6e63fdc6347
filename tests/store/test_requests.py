"""A run's list of requests: what it takes from a store that other runs fill too."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.errors import DataError
from raystill.store.requests import Request, load_request_keys, save_requests

REQUESTS = [Request("b", "p2", "eval"), Request("a", "p1", "train"), Request("c", "p3", "train")]


def test_keys_of_a_split_and_of_all(tmp_path: Path) -> None:
    save_requests(tmp_path / "requests.parquet", REQUESTS)
    assert load_request_keys(tmp_path / "requests.parquet") == {"a", "b", "c"}
    assert load_request_keys(tmp_path / "requests.parquet", "train") == {"a", "c"}


def test_equal_requests_give_equal_bytes(tmp_path: Path) -> None:
    save_requests(tmp_path / "one.parquet", REQUESTS)
    save_requests(tmp_path / "two.parquet", reversed(REQUESTS))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"not parquet"])
def test_an_unreadable_list_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "requests.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="list of requests"):
        load_request_keys(path)
