"""One run of the score stage: plan, run, account; for the top k and for the other tiers."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from pathlib import Path

from raystill.run.stage import StageContext
from raystill.store.store import TeacherStore
from raystill.teacher.identify import KnownTeacher, identify_teacher
from raystill.teacher.plan_scores import ScorePlan, plan_scores
from raystill.teacher.row_work import RowWork, ScoreWork, WorkOrder
from raystill.teacher.run_shards import run_shards
from raystill.teacher.tier_work import TierWork, lack_tier, plan_tier, tier_blueprint


class ScoreRun:
    """Scores rows of `keys`, and counts what became of them. Ray must be running."""

    def __init__(self, context: StageContext, store: TeacherStore, keys: Set[str], scratch: Path) -> None:
        self.rows = self.rejected = self.tokenised = self.tokens = 0
        self.rate = 0.0
        self._context = context
        self._store = store
        self._keys = keys
        self._scratch = scratch

    def score(self, *, only_texts: bool = False) -> None:
        """Give rows a top k as wide as is configured; with `only_texts` those in other tokens alone."""
        config = self._context.config
        num_logprobs = max(config.teacher.signals.num_logprobs, 1 if only_texts else 0)
        if num_logprobs == 0:
            return
        place = self._place("topk")
        plan = plan_scores(
            config, self._store, self._keys, place, lambda: self._teacher, only_texts=only_texts
        )
        self.tokenised += plan.tokenised
        self._run(plan, ScoreWork(num_logprobs), place)

    def capture(self, tier: TierWork) -> None:
        """Give rows draws or hidden states. Those in other tokens than the scorer's are scored first: ids
        are stored with scores."""
        if not lack_tier(self._store, tier, self._keys):
            return
        self.score(only_texts=True)
        own_tokens = self._teacher.identity.tokenizer_sha256 == self._store.identity.tokenizer_sha256
        place = self._place(tier.kind)
        shards = plan_tier(self._context.config, self._store, tier, self._keys, place, own_tokens=own_tokens)
        self._run(ScorePlan(shards), tier, place)

    def counts(self) -> dict[str, int]:
        """As the stage's manifest has them: a row that got a top k and a tier counts twice."""
        return {
            "rows": self.rows,
            "scored": self.rows - self.rejected,
            "rejected": self.rejected,
            "tokenised": self.tokenised,
            "completion_tokens": self.tokens,
        }

    @cached_property
    def _teacher(self) -> KnownTeacher:
        return identify_teacher(self._context.config)

    def _place(self, name: str) -> Path:
        """Shards and notes of one kind of work must not meet those of the other."""
        place = self._scratch / name
        place.mkdir(exist_ok=True)
        return place

    def _run(self, plan: ScorePlan, work: RowWork, place: Path) -> None:
        rows = plan.num_rows + plan.rejected
        self._context.events.emit(
            "scores_planned",
            rows=rows,
            shards=len(plan.shards),
            tokenised=plan.tokenised,
            rejected=plan.rejected,
        )
        self.rows += rows
        self.rejected += plan.rejected
        if not plan.shards:
            return
        blueprint = (
            tier_blueprint(self._teacher)
            if isinstance(work, TierWork)
            else self._teacher.blueprint(num_logprobs=self._width, scoring=True)
        )
        order = WorkOrder(self._store, work, str(place / "deaths"))
        progress = run_shards(plan.shards, blueprint, order, self._context.events)
        self.tokens += progress.tokens
        self.rejected += progress.rejected
        self.rate = progress.tokens_per_s

    @property
    def _width(self) -> int:
        return max(1, self._context.config.teacher.signals.num_logprobs)
