"""Which rows a training stage reads: with and without curate."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.run.paths import RunPaths
from raystill.store.endings import find_cut_off
from raystill.store.requests import Request, save_requests
from raystill.store.selection import Selected, save_selection
from raystill.store.store import load_store
from raystill.train.selection import load_training_rows
from raystill.train.stage import DISTILL_STAGE, SFT_STAGE

# Then no store is looked into.
KEEPS_ALL = {"base": {"cut_off": "train"}}


def test_without_curate_all_training_requests(empty_world: Any) -> None:
    config = empty_world.config(teacher=KEEPS_ALL)
    paths = RunPaths.from_config(config)
    save_requests(paths.requests, [Request("a", "p", "train"), Request("b", "q", "eval")])
    rows = load_training_rows(config, paths)
    assert (rows.keys, rows.redacted) == ({"a"}, {})
    assert "curate" not in SFT_STAGE.inputs(config) + DISTILL_STAGE.inputs(config)


def test_with_curate_what_it_kept(empty_world: Any) -> None:
    config = empty_world.config(curate={}, teacher=KEEPS_ALL)
    paths = RunPaths.from_config(config)
    with pytest.raises(DataError, match="curated rows"):
        load_training_rows(config, paths)
    kept = [Selected("a", "p", "train"), Selected("b", "q", "eval"), Selected("c", "r", "train", "[EMAIL]")]
    save_selection(paths.selection, kept)
    rows = load_training_rows(config, paths)
    assert (rows.keys, rows.redacted) == ({"a", "c"}, {"c": "[EMAIL]"})
    assert "curate" in SFT_STAGE.inputs(config) and "curate" in DISTILL_STAGE.inputs(config)


def test_completions_that_were_cut_off_are_left_out_unless_asked_for(
    small_run_module: ModuleType, tmp_path: Path
) -> None:
    """F9: stored and counted either way; left out of training unless the configuration says otherwise."""
    run = small_run_module.build_small_run(tmp_path, num_prompts=6)
    requests = [Request(row.key, row.prompt_id, "train") for row in run.rows]
    save_requests(run.paths.requests, requests)
    cut = {row.key for row in run.rows if row.finish_reason == "length"}
    assert cut
    assert find_cut_off(load_store(run.paths.store), run.paths.requests) == cut
    assert cut <= load_training_rows(run.config, run.paths).keys  # it says train
    values = run.config.model_dump(mode="json")
    del values["teacher"]["base"]["cut_off"]
    careful = load_training_rows(Config.model_validate(values), run.paths)
    assert careful.keys == {row.key for row in run.rows} - cut
    assert careful.num_cut_off == len(cut)
    assert careful.describe_cut_off()[0].startswith(f"{len(cut)} of {len(run.rows)} completions")
    assert "teacher.base.cut_off" in SFT_STAGE.config_keys
