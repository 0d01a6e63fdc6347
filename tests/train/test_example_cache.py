from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystill.store.store import load_store
from raystill.text.token_match import TokenMatch
from raystill.train import encode
from raystill.train.encode import TrainingData, load_training_data
from raystill.train.example_cache import load_arrays, save_arrays
from raystill.train.selection import TrainingRows
from raystill.train.settings import TrainSettings, resolve_settings

SAME = TokenMatch(same_ids=True, same_template=True)


def load(world: Any, settings: TrainSettings, keys: set[str], cache: Path | None) -> TrainingData:
    store = load_store(world.root / "store")
    wanted = TrainingRows(frozenset(keys))
    return load_training_data(
        store, wanted, settings, world.chat, SAME, vocab_size=259, context=128, cache=cache
    )


def same(left: TrainingData, right: TrainingData) -> bool:
    pairs = [(left.train, right.train), (left.held_out, right.held_out)]
    return left.counts == right.counts and all(
        one.source_names == other.source_names
        and all(np.array_equal(a, b) for a, b in zip(one.arrays(), other.arrays(), strict=True))
        for one, other in pairs
    )


@pytest.mark.parametrize("stage", ["sft", "distill"])
def test_a_second_start_reads_no_row_and_gets_the_same(
    world: Any, rows: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cache = resolve_settings(world.config(), stage), world.root / "examples"
    keys = {row.key for row in rows}
    first = load(world, settings, keys, cache)
    assert same(first, load(world, settings, keys, None))
    monkeypatch.setattr(encode, "load_rows", None)
    again = load(world, settings, keys, cache)
    assert same(first, again)
    assert np.array_equal(first.train.target_places(3), again.train.target_places(3))


def test_anything_that_matters_encodes_anew(world: Any, rows: Any) -> None:
    settings, cache = resolve_settings(world.config(), "sft"), world.root / "examples"
    keys = {row.key for row in rows}
    load(world, settings, keys, cache)
    (first,) = cache.iterdir()
    for changed in (replace(settings, test_size=0.4), replace(settings, data_seed=1)):
        assert same(load(world, changed, keys, cache), load(world, changed, keys, None))
        (only,) = cache.iterdir()  # what the last settings left is gone
        assert only.name != first.name
    load(world, settings, set(list(keys)[:30]), cache)
    assert first not in cache.iterdir()


def test_what_has_no_valid_manifest_is_not_looked_at(tmp_path: Path) -> None:
    save_arrays(tmp_path, "a", {"ids": np.arange(5)}, {"counts": {"rows": 1}})
    found = load_arrays(tmp_path, "a")
    assert (
        found is not None
        and found[0]["ids"].tolist() == [0, 1, 2, 3, 4]
        and found[1]["counts"] == {"rows": 1}
    )
    assert load_arrays(tmp_path, "b") is None
    array = tmp_path / "a" / "ids.npy"
    array.write_bytes(array.read_bytes()[:-1])
    assert load_arrays(tmp_path, "a") is None
    save_arrays(tmp_path, "a", {"ids": np.arange(5)}, {})
    (tmp_path / "a" / "manifest.json").unlink()
    assert load_arrays(tmp_path, "a") is None
