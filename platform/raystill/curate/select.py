"""From facts to the selection: the filters that compare rows, and the account of what every filter did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raystill.config.curate import CurateSection, MixtureSection
from raystill.curate.best_of_n import find_beaten, mean_logprobs
from raystill.curate.candidate import Drop
from raystill.curate.exact_duplicates import find_exact_duplicates
from raystill.curate.facts import Fact
from raystill.curate.judge_scores import find_badly_judged, load_judge_scores
from raystill.curate.mixture import find_outside_mixture
from raystill.curate.near_duplicates import find_near_duplicates
from raystill.errors import DataError

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Curated:
    """What came out: rows in, kept rows, and why each other row was dropped. Held-out rows are all kept.

    `scores` are the judge's, by key; `steps` counts the training rows that each filter dropped, in order.
    """

    facts: tuple[Fact, ...]
    kept: tuple[Fact, ...]
    drops: Mapping[str, Drop]
    steps: tuple[tuple[str, int], ...]
    scores: Mapping[str, float] = field(default_factory=dict)

    def held_out(self) -> list[Fact]:
        """The run's held-out rows."""
        return [fact for fact in self.facts if fact.split == "eval"]

    def kept_training(self) -> list[Fact]:
        """Rows to train on."""
        return [fact for fact in self.kept if fact.split != "eval"]


def curate(
    facts: Sequence[Fact],
    settings: CurateSection,
    find_pairs: Callable[[], Pairs],
    judge_scores: Path | None = None,
) -> Curated:
    """Apply every filter in the documented order. The result doesn't depend on the order of `facts`.

    `find_pairs` gives near-duplicate pairs; it is called only where they are looked for. `judge_scores` is
    the file of the judge's scores, where `settings.judge` asks for them. Raises DataError
    for judge scores that are missing or wrong, a mixture that can't be, and where no row is left.
    """
    facts = sorted(facts, key=lambda fact: fact.key)
    training = [fact for fact in facts if fact.split != "eval"]
    drops = {fact.key: fact.drop for fact in training if fact.drop is not None}
    left = [fact for fact in training if fact.drop is None]
    steps = list(Counter(drop.code for drop in drops.values()).items())
    scores: dict[str, float] = {}
    if settings.judge is not None and judge_scores is not None:
        scores = load_judge_scores(settings.judge, judge_scores, facts)

    def apply(name: str, found: Mapping[str, Drop]) -> None:
        drops.update(found)
        steps.append((name, len(found)))
        left[:] = [fact for fact in left if fact.key not in found]

    if settings.judge is not None:
        apply("judge", find_badly_judged(left, scores, settings.judge))
    if settings.exact_duplicates:
        apply("exact_duplicates", find_exact_duplicates(left))
    if settings.near_duplicates is not None:
        apply("near_duplicates", find_near_duplicates(left, find_pairs()))
    if settings.best_of_n is not None:
        apply("best_of_n", find_beaten(left, _ranking(settings, left, scores)))
    if settings.mixture is not None and left:
        apply("mixture", _find_outside(left, settings.mixture))
    kept = left + [fact for fact in facts if fact.split == "eval"]
    curated = Curated(
        tuple(facts), tuple(sorted(kept, key=lambda fact: fact.key)), drops, tuple(steps), scores
    )
    _check_account(curated)
    return curated


def describe(curated: Curated, settings: CurateSection) -> dict[str, Any]:
    """The report: rows in and out, drops by filter and code, held-out rows, personal data, the mixture."""
    held_out = curated.held_out()
    return {
        "rows_in": len(curated.facts),
        "kept": len(curated.kept),
        "dropped": len(curated.drops),
        "steps": [{"filter": name, "dropped": count} for name, count in curated.steps],
        "dropped_by_code": _count(drop.code for drop in curated.drops.values()),
        "held_out": {
            "rows": len(held_out),
            "would_be_dropped": _count(fact.drop.code for fact in held_out if fact.drop is not None),
        },
        "personal_data": {
            "mode": settings.personal_data,
            "in_completions": _count(kind for fact in curated.facts for kind in fact.personal_data),
            "in_prompts": _count(kind for fact in curated.facts for kind in fact.prompt_personal_data),
            "rows_redacted": sum(fact.redacted is not None for fact in curated.kept),
        },
        "sources": _sources(curated, settings.mixture),
    }


def _ranking(
    settings: CurateSection, left: Sequence[Fact], scores: Mapping[str, float]
) -> Mapping[str, float]:
    ranking = scores if settings.best_of_n == "judge" else mean_logprobs(left)
    if left and not any(fact.key in ranking for fact in left):
        raise DataError(
            "best_of_n ranks completions by their mean logprob, and no row has logprobs"
            if settings.best_of_n == "logprob"
            else "best_of_n ranks completions by the judge's scores, and no row has one",
            where="curate.best_of_n",
            fix="store logprobs (teacher.signals.num_logprobs, raystill score), or rank by the other",
        )
    return ranking


def _find_outside(left: Sequence[Fact], mixture: MixtureSection) -> dict[str, Drop]:
    weights = {entry.source: entry.weight for entry in mixture.sources}
    return find_outside_mixture(left, weights, mixture.max_rows, mixture.seed)


def _sources(curated: Curated, mixture: MixtureSection | None) -> list[dict[str, Any]]:
    """Training rows per source before and after, and, with a mixture, the share that was asked for."""
    before = Counter(fact.source for fact in curated.facts if fact.split != "eval")
    after = Counter(fact.source for fact in curated.kept_training())
    weights = {entry.source: entry.weight for entry in mixture.sources} if mixture is not None else {}
    whole, total = sum(weights.values()), sum(after.values())
    return [
        {
            "source": source,
            "rows_in": before[source],
            "kept": after[source],
            "share": after[source] / total if total else 0.0,
            **({"wanted_share": weights.get(source, 0.0) / whole} if mixture is not None else {}),
        }
        for source in sorted(before)
    ]


def _check_account(curated: Curated) -> None:
    if len(curated.kept) + len(curated.drops) != len(curated.facts):
        raise DataError(
            f"{len(curated.kept)} rows kept and {len(curated.drops)} dropped are not the "
            f"{len(curated.facts)} that came in",
            fix="this is a fault of raystill; please report it with curate/report.json",
        )
    if curated.kept_training() or not any(fact.split != "eval" for fact in curated.facts):
        return
    counts = ", ".join(f"{name} {count}" for name, count in curated.steps if count)
    raise DataError(
        f"the filters leave no row to train on ({counts})",
        where="curate",
        fix="loosen the filter that drops the most, often curate.finish_reasons or curate.length",
    )


def _count(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
