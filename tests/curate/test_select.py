"""Filters that compare rows, and the account: kept + dropped = in, whatever the order. No Ray."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.curate import CurateSection
from raystill.curate.best_of_n import find_beaten
from raystill.curate.candidate import Drop
from raystill.curate.exact_duplicates import find_exact_duplicates
from raystill.curate.facts import Fact, facts_to_table, load_facts
from raystill.curate.mixture import compute_mixture, find_outside_mixture
from raystill.curate.near_duplicates import (
    NearDuplicateSettings,
    compute_signatures,
    find_near_duplicates,
)
from raystill.curate.select import curate, describe
from raystill.errors import DataError

FACTS = st.lists(
    st.builds(
        Fact,
        key=st.text("0123456789abcdef", min_size=6, max_size=6),
        prompt_id=st.sampled_from(["p", "q", "r"]),
        split=st.sampled_from(["train", "train", "eval"]),
        source=st.sampled_from(["web", "code"]),
        sample_index=st.integers(0, 3),
        digest=st.sampled_from([b"a" * 16, b"b" * 16, b"c" * 16, b"d" * 16]),
        drop=st.sampled_from([None, None, Drop("empty"), Drop("refusal", "i cannot")]),
        redacted=st.sampled_from([None, "[EMAIL]"]),
        mean_logprob=st.sampled_from([None, -0.5, -1.0, -2.0]),
        personal_data=st.sampled_from([(), ("email",)]),
    ),
    max_size=25,
    unique_by=lambda fact: fact.key,
)


def settings(**changes: Any) -> CurateSection:
    return CurateSection.model_validate(changes)


@given(FACTS, st.randoms(use_true_random=False), st.sampled_from([None, "logprob"]), st.booleans())
def test_kept_and_dropped_are_what_came_in_in_any_order(
    facts: list[Fact], shuffler: random.Random, best_of_n: str | None, is_mixed: bool
) -> None:
    chosen = settings(
        best_of_n=best_of_n,
        near_duplicates={},
        mixture={"sources": [{"source": "web", "weight": 1.0}, {"source": "code", "weight": 1.0}]}
        if is_mixed
        else None,
    )
    keys = sorted(fact.key for fact in facts)
    pairs = list(zip(keys[1::3], keys[::3], strict=False))
    outcomes = []
    for _ in range(2):
        shuffler.shuffle(facts)
        shuffler.shuffle(pairs)
        try:
            outcomes.append(curate(facts, chosen, lambda: pairs))
        except DataError as error:
            outcomes.append(str(error))  # type: ignore[arg-type]
    assert outcomes[0] == outcomes[1]
    curated = outcomes[0]
    if isinstance(curated, str):
        assert "no row to train on" in curated or "has no rows left" in curated or "no row has" in curated
        return
    kept = {fact.key for fact in curated.kept}
    assert kept | curated.drops.keys() == set(keys) and not kept & curated.drops.keys()
    assert {fact.key for fact in facts if fact.split == "eval"} <= kept
    report = describe(curated, chosen)
    assert report["kept"] + report["dropped"] == report["rows_in"] == len(facts)
    assert sum(step["dropped"] for step in report["steps"]) == report["dropped"]
    assert sum(report["dropped_by_code"].values()) == report["dropped"]


def test_the_first_sample_of_equal_ones_stays() -> None:
    twins = [
        Fact(key, "p", "train", "web", index, b"x" * 16) for key, index in (("a", 2), ("b", 0), ("c", 1))
    ]
    assert find_exact_duplicates(twins).keys() == {"a", "c"}
    assert find_near_duplicates(twins, [("a", "c"), ("b", "c"), ("a", "b")]).keys() == {"a", "c"}


def test_near_duplicates_connect_through_rows_that_are_gone() -> None:
    facts = [Fact(key, key, "train", "web", 0, key.encode() * 16) for key in "abd"]
    drops = find_near_duplicates(facts, [("c", "a"), ("d", "c")])
    assert drops == {"d": Drop("near_duplicate", "of a")}


def test_the_best_of_each_prompt() -> None:
    facts = [
        Fact(k, p, "train", "web", i, b"x" * 16) for k, p, i in (("a", "p", 0), ("b", "p", 1), ("c", "q", 0))
    ]
    assert find_beaten(facts, {"a": 0.1, "b": 0.9}).keys() == {"a"}
    assert find_beaten(facts, {}).keys() == {"b"}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 500), min_size=1),
    st.lists(st.floats(0.01, 100.0), min_size=4, max_size=4),
    st.none() | st.integers(1, 300),
)
def test_a_mixture_has_the_shares_that_were_asked_for(
    available: dict[str, int], numbers: list[float], max_rows: int | None
) -> None:
    weights = dict(zip(available, numbers, strict=False))
    taken = compute_mixture(available, weights, max_rows)
    total = sum(taken.values())
    assert all(0 <= taken[source] <= available[source] for source in available)
    assert max_rows is None or total <= max_rows
    whole = min(available[s] * sum(weights.values()) / weights[s] for s in weights)
    wanted = whole if max_rows is None else min(whole, max_rows)
    assert all(abs(taken[s] - wanted * weights[s] / sum(weights.values())) <= 1 for s in weights)


def test_a_mixture_is_drawn_by_its_seed_alone() -> None:
    facts = [Fact(f"{n:03d}", "p", "train", "web" if n % 2 else "code", 0, b"x" * 16) for n in range(100)]
    drawn = find_outside_mixture(facts, {"web": 1.0, "code": 1.0}, 40, seed=1)
    assert drawn == find_outside_mixture(facts[::-1], {"web": 1.0, "code": 1.0}, 40, seed=1)
    assert drawn.keys() != find_outside_mixture(facts, {"web": 1.0, "code": 1.0}, 40, seed=2).keys()
    only_web = find_outside_mixture(facts, {"web": 1.0}, None, seed=1)
    assert Counter(drop.detail for drop in only_web.values()) == {"code": 50}
    with pytest.raises(DataError, match="wiki"):
        find_outside_mixture(facts, {"wiki": 1.0}, None, seed=1)


def test_signatures_estimate_similarity() -> None:
    bands = NearDuplicateSettings.for_threshold(0.8, 128)
    words = [f"word{n}" for n in range(200)]
    base, close, other = " ".join(words), " ".join([*words[:-10], "x"]), " ".join(reversed(words))
    signatures = compute_signatures([base, close, other, ""], bands)
    agreement = (signatures[0] == signatures).mean(axis=1)
    assert agreement[0] == 1.0 and agreement[1] == pytest.approx(0.94, abs=0.08) and agreement[2] < 0.1


@given(FACTS)
def test_facts_survive_the_disk(tmp_path_factory: Any, facts: list[Fact]) -> None:
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("facts") / "facts.parquet"
    pq.write_table(facts_to_table(facts), path)
    assert load_facts([path]) == sorted(facts, key=lambda fact: fact.key)
