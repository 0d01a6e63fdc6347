"""Object storage is refused where files are made by rename and guarded by locks."""

from __future__ import annotations

import pytest

from raystill.config.load import load_config
from raystill.errors import ConfigError


@pytest.mark.parametrize("key", ["teacher.store.path", "run.dir"])
@pytest.mark.parametrize("place", ["s3://bucket/prefix", "gs://bucket", "memory://x"])
def test_addresses_are_refused_with_the_reason(key: str, place: str) -> None:
    with pytest.raises(ConfigError, match="renames and locks") as caught:
        load_config([], [f"{key}={place}"])
    assert caught.value.problems[0].where


@pytest.mark.parametrize("place", ["runs/a", "/data/s3/store", "C:/runs"])
def test_paths_are_not(place: str) -> None:
    load_config([], [f"run.dir={place}"])
