"""Whether a store is the one that a run's answers were put into, and still holds all of them."""

from __future__ import annotations

from pathlib import Path

from raystill.errors import DataError
from raystill.run.manifest import Manifest
from raystill.run.publish import sha256_file
from raystill.store.content import content_digest
from raystill.store.pending import count_requests
from raystill.store.store import TeacherStore


def require_own_answers(store: TeacherStore, requests: Path, generated: Manifest | None) -> None:
    """Raise DataError unless the store holds an answer or a reject for every request of the run.

    Part of it may have been deleted, or it is the store of another dataset, teacher or tokenizer: hashes of
    all of them are said. `generated` is the manifest of the stage that filled the store.
    """
    census = count_requests(store, requests)
    if not census.pending:
        return
    recorded = "" if generated is None else str(generated.metrics.get("store_sha256", ""))
    hashes = {
        "its content": content_digest(store),
        "its content when generate had finished": recorded,
        "this run's requests": sha256_file(requests),
        "its teacher": store.identity.teacher_id,
        "its tokenizer": store.identity.tokenizer_sha256,
    }
    raise DataError(
        f"the teacher store lacks {census.pending:,} of this run's {census.requests:,} answers: part of it "
        "is gone, or it is another run's; hashes: "
        + ", ".join(f"{name} {value[:12] or 'unknown'}" for name, value in hashes.items()),
        where=str(store.path),
        fix="restore the store, or point teacher.store.path at the one that generate filled; `raystill "
        "generate --fresh` asks again for what is lacking, and for nothing else",
    )
