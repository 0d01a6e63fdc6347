"""The order of rows: a seeded function of the step's number, with length and mixture curricula.

Without curricula an epoch is a permutation of all rows. A length curriculum cuts the run into phases; each
phase orders the rows that are short enough for it, from its first step on. A mixture draws each step's rows
from the sources at given shares: every source is gone through in permutations of its own, and a source's rows
are spread evenly over the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from raystill.errors import ConfigError
from raystill.train.curriculum import Curriculum

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_WINDOW_STEPS = 50


@dataclass(frozen=True)
class RowFacts:
    """What ordering needs to know of the rows: tokens, and the source's index into `source_names`."""

    lengths: Int64Array
    sources: Int64Array
    source_names: Sequence[str]


@dataclass(frozen=True)
class _Phase:
    start: int
    stop: int
    rows: Int64Array


class RowOrder:
    """Rows of any step. With `sort_by_length` rows of a step are about as long as each other: windows of
    50 steps are sorted, their steps then shuffled."""

    def __init__(
        self,
        facts: RowFacts,
        curriculum: Curriculum,
        *,
        seed: int,
        rows_per_step: int,
        total_steps: int,
        sort_by_length: bool,
    ) -> None:
        """Raises ConfigError for a phase or a source without rows."""
        self._facts = facts
        self._curriculum = curriculum
        self._seed = seed
        self._rows_per_step = rows_per_step
        self._total_steps = max(total_steps, 1)
        self._sort = sort_by_length
        self._phases = _build_phases(facts, curriculum, self._total_steps)
        # Only the current order is needed; a bound method's cache would keep `self` alive.
        self._order = lru_cache(maxsize=2)(self._compute_order)

    def steps_per_epoch(self, step: int = 0) -> int:
        """Steps in which step `step`'s phase goes once through as many rows as it has."""
        return -(-len(self._phase_of(step)[1].rows) // self._rows_per_step)

    def rows(self, step: int) -> Int64Array:
        """The rows of step `step`, counted from 0."""
        number, phase = self._phase_of(step)
        epoch, place = divmod(step - phase.start, self.steps_per_epoch(step))
        return self._order(number, epoch)[place]

    def _phase_of(self, step: int) -> tuple[int, _Phase]:
        for number, phase in enumerate(self._phases):
            if step < phase.stop:
                return number, phase
        return len(self._phases) - 1, self._phases[-1]

    def _compute_order(self, number: int, epoch: int) -> list[Int64Array]:
        phase = self._phases[number]
        generator = np.random.default_rng([self._seed, epoch, *([number] if number else [])])
        if self._curriculum.mix:
            sequence = self._draw_mixture(phase, number, epoch)
        else:
            sequence = phase.rows[generator.permutation(len(phase.rows))]
        size = self._rows_per_step
        if not self._sort:
            return [sequence[first : first + size] for first in range(0, len(sequence), size)]
        steps: list[Int64Array] = []
        for start in range(0, len(sequence), size * _WINDOW_STEPS):
            rows = sequence[start : start + size * _WINDOW_STEPS]
            rows = rows[np.argsort(self._facts.lengths[rows], kind="stable")]
            batches = [rows[first : first + size] for first in range(0, len(rows), size)]
            steps += [batches[index] for index in generator.permutation(len(batches))]
        return steps

    def _draw_mixture(self, phase: _Phase, number: int, epoch: int) -> Int64Array:
        """An epoch's worth of full steps. Row n of the phase comes from the source that is furthest behind
        its share of the first n rows: places k + 1/2 of its cumulative share, merged over the sources."""
        steps = self.steps_per_epoch(phase.start)
        first, count = epoch * steps * self._rows_per_step, steps * self._rows_per_step
        # A few rows more: rounding may leave a source one short of its share at the end.
        horizon = first + count + len(self._facts.source_names)
        at_step = phase.start + np.arange(horizon) // self._rows_per_step
        shares_NS = self._shares(phase, at_step / self._total_steps)
        reached_NS = np.cumsum(shares_NS, axis=0)
        places, sources, turns = [], [], []
        for source in range(shares_NS.shape[1]):
            turn = np.arange(int(reached_NS[-1, source] + 0.5))
            places.append(np.searchsorted(reached_NS[:, source], turn + 0.5))
            sources.append(np.full(len(turn), source))
            turns.append(turn)
        merged = np.argsort(np.concatenate(places), kind="stable")[first : first + count]
        source_N, turn_N = np.concatenate(sources)[merged], np.concatenate(turns)[merged]
        drawn = np.zeros(len(merged), dtype=np.int64)
        for source in range(shares_NS.shape[1]):
            mine = source_N == source
            rows = phase.rows[self._facts.sources[phase.rows] == source]
            drawn[mine] = _take_in_turn(rows, turn_N[mine], [self._seed, number, source])
        return drawn

    def _shares(self, phase: _Phase, progress_N: Float64Array) -> Float64Array:
        """[N, S], rows summing to 1."""
        counts_S = np.bincount(self._facts.sources[phase.rows], minlength=len(self._facts.source_names))
        begin_S = complete_shares(self._curriculum.mix, self._facts.source_names, counts_S)
        end_S = complete_shares(
            self._curriculum.mix_end or self._curriculum.mix, self._facts.source_names, counts_S
        )
        progress_N1 = np.clip(progress_N, 0.0, 1.0)[:, None]
        mixed_NS: Float64Array = begin_S * (1 - progress_N1) + end_S * progress_N1
        return mixed_NS


def complete_shares(mix: Mapping[str, float], names: Sequence[str], counts_S: Int64Array) -> Float64Array:
    """Shares of all sources, summing to 1: what `mix` leaves goes to the others by their rows.

    Raises ConfigError for a named source without rows.
    """
    shares_S = np.array([mix.get(name, 0.0) for name in names], dtype=np.float64)
    rows = dict(zip(names, counts_S.tolist(), strict=True))
    empty = [name for name, share in mix.items() if share > 0 and not rows.get(name)]
    if empty:
        raise ConfigError(
            f"the mixture draws from {', '.join(empty)}, of which there are no rows to train on",
            where="curriculum.mix",
            fix=f"the rows' sources are {', '.join(name for name in names if rows[name])}",
        )
    others_S = np.where([name in mix for name in names], 0, counts_S)
    left = max(1.0 - shares_S.sum(), 0.0)
    if others_S.sum() > 0:
        shares_S += left * others_S / others_S.sum()
    normalised_S: Float64Array = shares_S / shares_S.sum()
    return normalised_S


def _take_in_turn(rows: Int64Array, turns: Int64Array, seed: list[int]) -> Int64Array:
    """Row of each turn: every len(rows) turns are one permutation."""
    taken = np.zeros(len(turns), dtype=np.int64)
    if len(turns) == 0:
        return taken
    rounds = turns // len(rows)
    for number in np.unique(rounds):
        permutation = np.random.default_rng([*seed, int(number)]).permutation(rows)
        mine = rounds == number
        taken[mine] = permutation[turns[mine] % len(rows)]
    return taken


def _build_phases(facts: RowFacts, curriculum: Curriculum, total_steps: int) -> list[_Phase]:
    everything = np.arange(len(facts.lengths))
    if not curriculum.max_lengths:
        return [_Phase(0, total_steps, everything)]
    phases, start = [], 0
    ends = [*curriculum.ends[: len(curriculum.max_lengths) - 1], total_steps]
    for longest, end in zip(curriculum.max_lengths, ends, strict=True):
        rows = everything[facts.lengths <= longest]
        if len(rows) == 0:
            raise ConfigError(
                f"no row has at most {longest} tokens; the shortest has {int(facts.lengths.min())}",
                where="curriculum.seq_lengths",
                fix="begin with a longer length",
            )
        if start < end:
            phases.append(_Phase(start, end, rows))
        start = end
    return phases or [_Phase(0, total_steps, everything)]
