"""How fast an endpoint may be asked: token buckets and adaptive concurrency. Pure: every method takes `now`.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Room for late wake-ups, in seconds of the rate. More would burst above the limit in the first minute.
_BURST_SECONDS = 1.0
# One decision about the concurrency per so many answers, or per two rounds of it where that is more; at once
# after so many throttles.
_ANSWERS_PER_DECISION = 100
_THROTTLES_TO_DECIDE = 10
# Endpoints throttle a few requests at random; only a larger share means that there are too many of them.
_TOLERATED_SHARE = 0.05
_HEAVY_SHARE = 0.5
_DECREASE, _HEAVY_DECREASE = 0.7, 0.5
_STEPS_TO_CEILING = 16
_LEAST_STEPS_TO_DOUBLE = 4
# Throttles in a row, with no answer between them, that mean the endpoint is closed to everyone for a while.
_CLOSED_AFTER = 3


@dataclass
class TokenBucket:
    """At most `per_minute` units a minute. A taker larger than the bucket waits until it is full and goes
    into debt, so the long-run rate holds for requests of any size.
    """

    per_minute: float
    _level: float = field(init=False)
    _at: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self._level = self.capacity

    @property
    def capacity(self) -> float:
        """Units that may be taken at once after a pause."""
        return max(1.0, self.per_minute / 60.0 * _BURST_SECONDS)

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until `amount` may be taken; 0.0 now."""
        self._refill(now)
        missing = min(amount, self.capacity) - self._level
        return max(0.0, missing * 60.0 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into debt if need be; negative amounts give back."""
        self._refill(now)
        self._level = min(self._level - amount, self.capacity)

    def _refill(self, now: float) -> None:
        if now > self._at:
            gained = (now - self._at) * self.per_minute / 60.0
            self._level = min(self.capacity, self._level + gained)
            self._at = now


@dataclass
class AdaptiveConcurrency:
    """Additive increase, multiplicative decrease of the requests in flight, between 1 and `ceiling`.

    Starts at the ceiling, which the user chose. A share of throttled answers up to 5 % changes nothing: an
    endpoint that throttles at random would otherwise be asked by one request at a time.

    Every cut begins an epoch, and how requests of earlier ones end decides nothing any more: they were sent
    at a level that is given up already, so a burst of throttles costs one cut however long it is. From a cut
    the limit grows by one per answer (doubling per round trip, as TCP's slow start does, RFC 5681) up to the
    last level that was good, and by small steps from there; or by small steps at once where it is cut again
    on the way, for hardly anyone is throttled by chance twice.
    """

    ceiling: int
    epoch: int = field(init=False, default=0)
    _limit: float = field(init=False)
    _good: float = field(init=False, default=0.0)
    _returns_to: float = field(init=False, default=0.0)
    _answers: int = field(init=False, default=0)
    _throttles: int = field(init=False, default=0)
    _in_a_row: int = field(init=False, default=0)
    _closed_until: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self._limit = float(self.ceiling)

    @property
    def limit(self) -> int:
        """Requests that may be in flight."""
        return int(self._limit)

    def seconds_until_open(self, now: float) -> float:
        """How long nobody may ask, because the endpoint has throttled everyone; 0.0 for now."""
        return max(0.0, self._closed_until - now)

    def on_answer(self, epoch: int) -> None:
        """A request that was sent in `epoch` ended without being throttled."""
        self._in_a_row = 0
        if epoch != self.epoch:
            return
        self._answers += 1
        if self._limit < self._returns_to:
            self._limit = min(self._limit + 1.0, self._returns_to)
        self._decide()

    def on_throttle(self, epoch: int, wait_seconds: float, now: float) -> None:
        """A request of `epoch` was throttled; it will wait `wait_seconds`, and so do all after a series."""
        self._in_a_row += 1
        if self._in_a_row >= min(_CLOSED_AFTER, self.limit + 1):
            self._closed_until = max(self._closed_until, now + wait_seconds)
        if epoch != self.epoch:
            return
        self._answers += 1
        self._throttles += 1
        self._decide()

    def _decide(self) -> None:
        """Cut as soon as it is clear that too many are throttled; grow once a whole window was good."""
        is_due = self._answers >= max(_ANSWERS_PER_DECISION, 2 * self.limit)
        if not is_due and self._throttles < _THROTTLES_TO_DECIDE:
            return
        share = self._throttles / self._answers
        if share > _TOLERATED_SHARE:
            self._cut(is_heavy=share > _HEAVY_SHARE)
        elif is_due:
            self._good = self._limit
            step = min(self.ceiling / _STEPS_TO_CEILING, self._limit / _LEAST_STEPS_TO_DOUBLE)
            self._limit = min(float(self.ceiling), self._limit + max(1.0, step))
        else:
            return
        self._answers = self._throttles = 0

    def _cut(self, *, is_heavy: bool) -> None:
        if self._good or not is_heavy:  # else the burst before this one goes on
            self._returns_to, self._good = self._good, 0.0
        self._limit = max(1.0, self._limit * (_HEAVY_DECREASE if is_heavy else _DECREASE))
        self.epoch += 1


@dataclass
class MeanTokens:
    """A running mean of what answers used, for reserving before a request; `first` until there are some."""

    first: float
    _mean: float = field(init=False)
    _count: int = 0

    def __post_init__(self) -> None:
        self._mean = self.first

    @property
    def value(self) -> float:
        """The mean."""
        return self._mean

    def add(self, tokens: float) -> None:
        """One more answer; the last hundred or so count."""
        self._count += 1
        self._mean += (tokens - self._mean) / min(self._count, 100)
