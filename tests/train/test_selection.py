"""Which rows a training stage reads: with and without curate."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.errors import DataError
from raystill.run.paths import RunPaths
from raystill.store.requests import Request, save_requests
from raystill.store.selection import Selected, save_selection
from raystill.train.selection import load_training_rows
from raystill.train.stage import DISTILL_STAGE, SFT_STAGE


def test_without_curate_all_training_requests(empty_world: Any) -> None:
    config = empty_world.config()
    paths = RunPaths.from_config(config)
    save_requests(paths.requests, [Request("a", "p", "train"), Request("b", "q", "eval")])
    rows = load_training_rows(config, paths)
    assert (rows.keys, rows.redacted) == ({"a"}, {})
    assert "curate" not in SFT_STAGE.inputs(config) + DISTILL_STAGE.inputs(config)


def test_with_curate_what_it_kept(empty_world: Any) -> None:
    config = empty_world.config(curate={})
    paths = RunPaths.from_config(config)
    with pytest.raises(DataError, match="curated rows"):
        load_training_rows(config, paths)
    kept = [Selected("a", "p", "train"), Selected("b", "q", "eval"), Selected("c", "r", "train", "[EMAIL]")]
    save_selection(paths.selection, kept)
    rows = load_training_rows(config, paths)
    assert (rows.keys, rows.redacted) == ({"a", "c"}, {"c": "[EMAIL]"})
    assert "curate" in SFT_STAGE.inputs(config) and "curate" in DISTILL_STAGE.inputs(config)
