"""Who scores a store's rows, where that isn't the teacher that wrote them.

Answers of an API, and imported ones, are scored by a teacher with open weights: its tokens and its
distributions are what students learn from. A store has one scorer, as it has one teacher.
"""

from __future__ import annotations

import json

from pydantic import ValidationError

from raystill.errors import DataError
from raystill.store.commit import load_commits
from raystill.store.identity import StoreIdentity
from raystill.store.store import TeacherStore, publish_first

# Which engine ran the weights, and how many logprobs it kept, is not who the scorer is.
_COMPARED = (
    "teacher",
    "revision",
    "weights_sha256",
    "dtype",
    "tokenizer_sha256",
    "chat_template_sha256",
    "logprob_policy",
)


def load_scorer(store: TeacherStore) -> StoreIdentity | None:
    """The scorer, None where rows are scored by their own teacher or not at all.

    Raises DataError if scorer.json can't be read.
    """
    path = store.layout.scorer_json
    try:
        return StoreIdentity.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, ValidationError) as error:
        raise DataError(
            "the record of the store's scorer can't be read",
            where=str(path),
            fix="restore scorer.json from a copy: it says which tokens the scores belong to",
        ) from error


def signal_identity(store: TeacherStore) -> StoreIdentity:
    """Whose tokens and distributions the store's signals are: the scorer's, else the teacher's."""
    return load_scorer(store) or store.identity


def record_scorer(store: TeacherStore, scorer: StoreIdentity) -> None:
    """Say who is going to score, before the first score. Nothing is written for the store's own teacher.

    Raises DataError naming the fields in which `scorer` differs from the one that has scored before.
    """
    known = load_scorer(store)
    if known is None:
        differences = differing_scorer(store.identity, scorer)
        if not differences:
            return
        if not _has_scores(store):
            publish_first(store.layout.scorer_json, scorer.model_dump(mode="json"))
            known = load_scorer(store)  # of two that came at once, the first
    if known is not None:
        differences = differing_scorer(known, scorer)
    if differences:
        raise DataError(
            "the store's rows were scored by another teacher:\n    " + "\n    ".join(differences),
            where=str(store.layout.scorer_json),
            fix="restore the settings of teacher.open, or import or generate into a new store",
        )


def differing_scorer(stored: StoreIdentity, wanted: StoreIdentity) -> list[str]:
    """One line per field that makes another scorer: `field: stored -> wanted`."""
    before, after = stored.model_dump(), wanted.model_dump()
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}" for name in _COMPARED if before[name] != after[name]
    ]


def _has_scores(store: TeacherStore) -> bool:
    return any(load_commits(store, partition, "scores") for partition in range(store.num_partitions))
