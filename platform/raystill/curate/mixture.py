"""Shares of the prompt sources, reached by leaving rows out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from raystill.curate.candidate import Drop
from raystill.curate.facts import Fact
from raystill.errors import DataError


def compute_mixture(
    available: Mapping[str, int], weights: Mapping[str, float], max_rows: int | None
) -> dict[str, int]:
    """Rows to take per source: as many as the scarcest source allows, in proportion to `weights`.

    Each source gets floor(total * share), so the achieved shares are off by less than one row.
    Raises DataError for a source with a weight and no rows.
    """
    missing = sorted(source for source in weights if not available.get(source))
    if missing:
        raise DataError(
            f"the mixture gives a weight to a source that has no rows left: {', '.join(missing)}",
            where="curate.mixture.sources",
            fix=f"sources with rows: {', '.join(sorted(available)) or 'none'}; correct the name, or loosen "
            "the filters before the mixture",
        )
    whole = sum(weights.values())
    shares = {source: weight / whole for source, weight in weights.items()}
    total = min(available[source] / share for source, share in shares.items())
    if max_rows is not None:
        total = min(total, max_rows)
    return {source: min(available[source], int(total * share + 1e-9)) for source, share in shares.items()}


def find_outside_mixture(
    facts: Sequence[Fact], weights: Mapping[str, float], max_rows: int | None, seed: int
) -> dict[str, Drop]:
    """Keys that the mixture leaves out: a seeded draw per source that no other row changes.

    Raises what `compute_mixture` raises.
    """
    by_source: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        by_source[fact.source].append(fact.key)
    taken = compute_mixture({source: len(keys) for source, keys in by_source.items()}, weights, max_rows)
    drops: dict[str, Drop] = {}
    for source, keys in by_source.items():
        ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        drops |= {key: Drop("mixture", source) for key in ranked[taken.get(source, 0) :]}
    return drops
