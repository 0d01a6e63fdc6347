"""The promise of retention, driven by random histories of saves, crashes, restarts and disk pressure."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.checkpoint.policy import (
    RELIEF,
    Held,
    RetentionPlan,
    RetentionRules,
    milestone_steps,
    plan_retention,
)

PLENTY = 1e9
NUM_HISTORIES = 10_000


def plan(
    steps: list[int], *, total: int = 1000, recent: int = 3, free: float = PLENTY, least: float = 0.0,
    current: int | None = None, in_use: tuple[int, ...] = (), size: float = 1.0,
) -> RetentionPlan:  # fmt: skip
    return plan_retention(
        dict.fromkeys(steps, Held(size)), RetentionRules(total, recent, least), free_gb=free,
        current=current, in_use=in_use,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1000, (100, 250, 500, 750, 900, 1000)),
        (1500, (150, 375, 750, 1125, 1350, 1500)),
        (7, (1, 2, 4, 6, 7)),
        (1, (1,)),
        (0, ()),
    ],
)
def test_milestones_are_rounded_up(total: int, expected: tuple[int, ...]) -> None:
    assert milestone_steps(total) == expected


@given(st.integers(1, 10**9))
def test_milestones_are_exact_ceilings(total: int) -> None:
    steps = milestone_steps(total)
    assert steps[-1] == total
    assert all(0 < step <= total for step in steps)
    for percent in (10, 25, 50, 75, 90, 100):
        assert any(step * 100 >= total * percent > (step - 1) * 100 for step in steps)


def test_milestones_take_no_recent_slot() -> None:
    assert plan([50, 100, 150, 200, 250, 300], current=300).keep == (100, 150, 200, 250, 300)
    assert plan([50, 60, 70, 80, 90, 100], current=100).keep == (70, 80, 90, 100)


def test_the_first_seeds_example() -> None:
    on_disk: list[int] = []
    for step in sorted({*range(100, 1501, 100), *milestone_steps(1500)}):
        on_disk = list(plan([*on_disk, step], total=1500, current=step).keep)
    assert on_disk == [150, 375, 750, 1125, 1200, 1300, 1350, 1400, 1500]


def test_without_a_save_at_the_milestone_the_first_one_after_it_stands_for_it() -> None:
    on_disk: list[int] = []
    for step in range(70, 1001, 70):
        on_disk = list(plan([*on_disk, step], recent=1, current=step).keep)
    assert on_disk == [140, 280, 560, 770, 910, 980]


def test_pressure_lets_the_recent_ones_go_one_by_one() -> None:
    """F15."""
    steps = [610, 620, 630, 640]
    for free, kept in ((10.0, 4), (9.9, 1), (9.0, 1)):
        found = plan(steps, total=10_000, recent=4, free=free, least=10.0, current=640)
        assert len(found.keep) == kept
    relieved = plan(steps, total=10_000, recent=4, free=9.0, least=10.0, current=640, size=2.5)
    assert relieved.keep == (630, 640)
    assert 9.0 + 2.5 < 10.0 * RELIEF <= 9.0 + 2 * 2.5


def test_what_goes_anyway_counts_as_room() -> None:
    found = plan([610, 620, 630, 640], total=10_000, recent=2, free=9.0, least=9.1, current=640)
    assert found.keep == (630, 640)


def test_pressure_never_takes_milestones_the_current_or_what_is_in_use() -> None:
    """F15."""
    found = plan([100, 150, 200, 250, 300], recent=3, free=0.0, least=100.0, current=300, in_use=(150,))
    assert found.keep == (100, 150, 250, 300)


def test_leftovers_of_an_abandoned_continuation_do_not_starve_new_checkpoints() -> None:
    assert plan([900, 1000, 1100, 1200, 110, 120, 130], total=5000, current=130).keep == (110, 120, 130)


def test_the_best_need_a_finite_score_and_ties_go_to_the_earlier() -> None:
    scores = {10: 2.0, 20: 1.0, 30: math.nan, 40: 1.0, 50: None, 60: 3.0}
    held = {step: Held(1.0, score) for step, score in scores.items()}
    rules = RetentionRules(10_000, 1, 0.0, keep_best=1)
    assert plan_retention(held, rules, free_gb=PLENTY, current=60).keep == (20, 60)
    assert plan_retention(held, replace(rules, keep_best=3), free_gb=PLENTY, current=60).keep == (
        10,
        20,
        40,
        60,
    )
    assert plan_retention(held, replace(rules, mode="max"), free_gb=PLENTY, current=50).keep == (10, 50)


def test_every_kept_step_has_a_reason() -> None:
    found = plan([100, 120, 150, 160, 250, 260], current=260, recent=2, in_use=(120,))
    assert found.reasons == {
        100: ("milestone 10 %",), 120: ("in use",), 160: ("recent",),
        250: ("milestone 25 %",), 260: ("newest", "recent"),
    }  # fmt: skip


class Disk:
    """A disk, and what a run that lives through crashes, restarts and edits of its settings knows of it."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.held: dict[int, Held] = {}
        self.pinned: set[int] = set()
        self.step = 0
        self.resume_point: int | None = None
        self.neighbours_gb = 0.0
        self.capacity_gb = random_.choice([1e9, random_.uniform(20, 80)])
        self.rules = RetentionRules(
            total_steps=random_.randint(5, 400),
            max_recent=random_.randint(1, 5),
            min_free_gb=random_.uniform(0, 20),
            keep_best=random_.choice([0, 0, 1, 2]),
            mode=random_.choice(["min", "max"]),
        )
        # (step that stands for a milestone) as promised at the time it was saved
        self.promised: set[int] = set()

    @property
    def free_gb(self) -> float:
        used = sum(held.size_gb for held in self.held.values())
        return max(0.0, self.capacity_gb - self.neighbours_gb - used)

    def run_event(self) -> None:
        event = self.random.choices(
            ["save", "crash", "damage", "change_rules", "neighbour", "pin"], [10, 1, 1, 0.5, 1, 0.7]
        )[0]
        getattr(self, event)()

    def crash(self) -> None:
        whole = [step for step, held in self.held.items() if held.is_whole]
        self.step = max(whole, default=0)
        self.resume_point = self.step or None

    def damage(self) -> None:
        if self.held:
            newest = max(self.held)
            self.held[newest] = replace(self.held[newest], is_whole=False)
            self.promised.discard(newest)
            self.crash()

    def change_rules(self) -> None:
        self.rules = replace(self.rules, max_recent=self.random.randint(1, 5))

    def neighbour(self) -> None:
        self.neighbours_gb = self.random.uniform(0, min(self.capacity_gb, 60))

    def pin(self) -> None:
        if self.held:
            self.pinned = {self.random.choice(sorted(self.held))}

    def save(self) -> None:
        total = self.rules.total_steps
        if self.step >= total:
            return
        goal = min(self.step + self.random.randint(1, 30), total)
        forced = [m for m in milestone_steps(total) if self.step < m <= goal]
        self.step = forced[0] if forced else goal
        score = self.random.choice([None, self.random.random(), math.nan])
        self.held[self.step] = Held(self.random.uniform(0.1, 4.0), score)
        self.promised = {s for s in self.promised if s in self.held}
        if self.step in milestone_steps(total):
            self.promised.add(self.step)
        self.retain()

    def retain(self) -> None:
        free, held, rules = self.free_gb, dict(self.held), self.rules
        in_use = {self.resume_point} & held.keys() if self.resume_point else set()
        found = plan_retention(
            held, rules, free_gb=free, current=self.step, in_use=in_use, pinned=self.pinned
        )
        check(found, held, rules, free, self.step, in_use | (self.pinned & held.keys()), self.promised)
        self.held = {step: held[step] for step in found.keep}
        again = plan_retention(
            self.held, rules, free_gb=PLENTY, current=self.step, in_use=in_use, pinned=self.pinned
        )
        assert again.delete == ()
        self.resume_point = self.step


def check(
    found: RetentionPlan, held: dict[int, Held], rules: RetentionRules, free: float, step: int,
    untouchable: set[int | None], promised: set[int],
) -> None:  # fmt: skip
    kept = set(found.keep)
    assert sorted((*found.keep, *found.delete)) == sorted(held)
    assert step in kept
    assert untouchable <= kept
    assert promised <= kept
    assert all(found.reasons[s] for s in kept)
    alive = [s for s in sorted(held) if s <= step and held[s].is_whole]
    scored = [s for s in alive if held[s].score is not None and math.isfinite(held[s].score or 0.0)]
    if rules.keep_best and scored:
        pick = min if rules.mode == "min" else max
        assert pick(held[s].score or 0.0 for s in scored) in {held[s].score for s in kept}
    stands_for = {next(s for s in alive if s >= m) for m in milestone_steps(rules.total_steps) if m <= step}
    others = [s for s in alive if s not in stands_for]
    extra = kept - stands_for - untouchable
    assert sum("recent" in found.reasons[s] for s in kept) <= rules.max_recent
    assert len(extra) <= rules.max_recent + rules.keep_best
    wanted = others[-rules.max_recent :]
    if free >= rules.min_free_gb:
        assert set(wanted) <= kept
        assert found.recent_allowed == rules.max_recent
    else:
        freed = free + sum(held[s].size_gb for s in found.delete)
        left = [s for s in wanted if "recent" in found.reasons.get(s, ())]
        assert freed >= rules.min_free_gb * RELIEF or len(left) <= 1
        given_up = [s for s in found.delete if s in wanted]
        if given_up:  # no more is given up than relief needs
            assert freed - held[max(given_up)].size_gb < rules.min_free_gb * RELIEF
            assert max(given_up) < min(left, default=math.inf)


@pytest.mark.parametrize("seed", range(4))
def test_the_promise_holds_over_any_history(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(NUM_HISTORIES // 4):
        disk = Disk(random_)
        for _ in range(random_.randint(1, 25)):
            disk.run_event()
