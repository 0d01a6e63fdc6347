"""Which stored rows a training stage reads: all that the run asked for, or those that curate kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.endings import find_cut_off
from raystill.store.requests import load_request_keys
from raystill.store.selection import load_selection
from raystill.store.store import load_store


@dataclass(frozen=True)
class TrainingRows:
    """Keys of the rows to train on. `redacted` holds, by key, the texts that replace stored completions:
    what a teacher said of other tokens is no signal for them."""

    keys: frozenset[str]
    redacted: Mapping[str, str] = field(default_factory=dict)


def load_training_rows(config: Config, paths: RunPaths) -> TrainingRows:
    """The run's training split, curated where `curate` is configured, without completions that were cut off
    where `teacher.base.cut_off` leaves them out. Raises DataError for a broken table or store."""
    left_out = frozenset[str]()
    if config.teacher.base.cut_off == "leave_out":
        left_out = find_cut_off(load_store(paths.store.resolve()), paths.requests)
    if config.curate is None:
        return TrainingRows(load_request_keys(paths.requests, "train") - left_out)
    kept = [row for row in load_selection(paths.selection) if row.split == "train"]
    return TrainingRows(
        frozenset(row.key for row in kept) - left_out,
        {row.key: row.completion for row in kept if row.completion is not None},
    )
