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
    what a teacher said of other tokens is no signal for them. `num_cut_off` rows of the training split were
    left out because their completions ended at the token limit."""

    keys: frozenset[str]
    redacted: Mapping[str, str] = field(default_factory=dict)
    num_cut_off: int = 0

    def describe_cut_off(self) -> tuple[str, ...]:
        """What the user should hear about completions that were cut off; nothing where there are none."""
        if not self.num_cut_off:
            return ()
        whole = self.num_cut_off + len(self.keys)
        return (
            f"{self.num_cut_off} of {whole} completions ran into max_new_tokens and are left out; "
            "teacher.base.cut_off: train would keep them",
        )


def load_training_rows(config: Config, paths: RunPaths) -> TrainingRows:
    """The run's training split, curated where `curate` is configured, without completions that were cut off
    unless `teacher.base.cut_off` is train. Raises DataError for a broken table or store."""
    redacted: dict[str, str] = {}
    if config.curate is None:
        wanted = load_request_keys(paths.requests, "train")
    else:
        kept = [row for row in load_selection(paths.selection) if row.split == "train"]
        wanted = frozenset(row.key for row in kept)
        redacted = {row.key: row.completion for row in kept if row.completion is not None}
    if config.teacher.base.cut_off == "train":
        return TrainingRows(wanted, redacted)
    cut_off = wanted & find_cut_off(load_store(paths.store.resolve()), paths.requests)
    whole = {key: text for key, text in redacted.items() if key not in cut_off}
    return TrainingRows(wanted - cut_off, whole, len(cut_off))
