"""On-policy distillation: the student writes, frozen models judge every token of it.

Exposure to its own prefixes is what a student lacks that only ever saw its teacher's (generalised knowledge
distillation: Agarwal et al., arXiv:2306.13649, where `share` is called lambda).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raystill.losses.teachers import Teacher
from raystill.store.records import Int32Array
from raystill.train.batches import Batch, StepPlan
from raystill.train.clock import StepClock
from raystill.train.examples import Example, ExampleSet
from raystill.train.objective import Alignment, Head
from raystill.train.rollouts.engine import RolloutEngine
from raystill.train.rollouts.window import RolloutWindow, WindowMaker, rows_of
from raystill.train.teachers.online import OnlineSignals
from raystill.train.teachers.source import StepWork


@dataclass
class _Since:
    """Sums since the last line of metrics.jsonl."""

    tokens: int = 0
    seconds: float = 0.0
    refresh_seconds: float = 0.0
    rows: int = 0
    rollout_rows: int = 0
    rollout_tokens: int = 0
    ended: int = 0
    stale_steps: int = 0
    steps: int = 0


class OnPolicySignals:
    """`SignalSource` whose rows are the student's own completions, judged by online teachers.

    `sync_every` steps share one window of rollouts, made with the weights at its start.
    """

    def __init__(
        self,
        online: OnlineSignals,
        engine: RolloutEngine,
        maker: WindowMaker,
        examples: ExampleSet,
        *,
        sync_every: int,
        total_steps: int,
        eos_ids: frozenset[int],
        clock: StepClock | None = None,
    ) -> None:
        self._online = online
        self._engine = engine
        self._maker = maker
        self._examples = examples
        self._sync_every = sync_every
        self._total_steps = total_steps
        self._eos_ids = eos_ids
        self._clock = clock or StepClock()
        self._window = RolloutWindow(0, 0)
        self._next_step = 0
        self._since = _Since()

    @property
    def alignment(self) -> Alignment | None:
        """That of the online teachers."""
        return self._online.alignment

    def work(self, step: int) -> StepWork:
        """The step's rows: rollouts where they are due, the stored text elsewhere."""
        if not self._window.start <= step < self._window.stop:
            with self._clock.measure("rollout"):
                self._refill(step)
        self._next_step = step + 1
        since, group = self._since, self._maker.group
        plans = [self._maker.planner.plan(step, rank) for rank in range(group.size)]
        since.steps += 1
        since.stale_steps += step - self._window.start
        num_tokens = 0
        for plan in plans:
            for row in rows_of(plan):
                rollout = self._window.rollouts.get((step, row))
                since.rows += 1
                if rollout is not None:
                    since.rollout_rows += 1
                    since.rollout_tokens += len(rollout)
                    since.ended += int(rollout[-1]) in self._eos_ids
                num_tokens += self._num_targets(row, rollout)
        return self._own_work(step, plans[group.rank], num_tokens)

    def announce(self, batch: Batch) -> None:
        """Let judges that have a process of their own begin."""
        self._online.announce(batch)

    @property
    def teacher_passes(self) -> int:
        """Those of the online teachers."""
        return self._online.teacher_passes

    def signals(self, batch: Batch, hidden_ND: Tensor, head: Head) -> Teacher | None:
        """What the online teachers say of every token."""
        return self._online.signals(batch, hidden_ND, head)

    def tensors(self) -> dict[str, Tensor]:
        """The window, where the next step is still inside it."""
        inside = self._window.start < self._next_step < self._window.stop
        return self._window.tensors() if inside else {}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue with the rollouts of the interrupted window; at its end a new one is made anyway."""
        self._next_step = step
        self._window = RolloutWindow.from_tensors(tensors) if tensors else RolloutWindow(0, 0)

    def metrics(self) -> dict[str, float]:
        """`rollout/*` since the last line.

        share: of the rows; tokens: mean length; ended: share that wrote its own end; staleness: steps behind
        the weights. Where a window was made: seconds, those of handing the weights over, tokens per second.
        """
        since, self._since = self._since, _Since()
        if since.steps == 0:
            return {}
        values = {
            "rollout/share": since.rollout_rows / max(since.rows, 1),
            "rollout/staleness": since.stale_steps / since.steps,
        }
        if since.rollout_rows:
            values["rollout/tokens"] = since.rollout_tokens / since.rollout_rows
            values["rollout/ended"] = since.ended / since.rollout_rows
        if since.seconds:
            values["rollout/seconds"] = since.seconds
            values["rollout/refresh_seconds"] = since.refresh_seconds
            values["rollout/tok_s"] = since.tokens / since.seconds
        return values

    def close(self) -> None:
        """End the engine and let go of the teachers."""
        self._engine.close()
        self._online.close()

    def _num_targets(self, row: int, rollout: Int32Array | None) -> int:
        """Tokens of a row that carry loss; what carries loss in its prompt does so before a rollout too."""
        examples = self._examples
        targets = int(examples.num_loss_tokens[row])
        if rollout is None:
            return targets
        return targets - (int(examples.lengths[row]) - examples.first_target(row)) + len(rollout)

    def _refill(self, step: int) -> None:
        started = time.monotonic()
        start = step - step % self._sync_every
        stop = min(start + self._sync_every, self._total_steps)
        self._engine.refresh()
        self._since.refresh_seconds += time.monotonic() - started
        # From `step` on: with no window in the checkpoint a resumed run starts one where it stands.
        self._window = self._maker.make(step, stop, self._engine)
        self._since.seconds += time.monotonic() - started
        self._since.tokens += sum(len(tokens) for tokens in self._window.rollouts.values())

    def _own_work(self, step: int, plan: StepPlan, num_tokens: int) -> StepWork:
        examples = ExampleSet([self._example(step, row) for row in rows_of(plan)])
        edges = np.cumsum([len(rows) for rows in plan.micro_batches])
        # A worker without rows has no micro-batch; a split would make an empty one.
        micro_batches = np.split(np.arange(len(examples)), edges[:-1]) if plan.micro_batches else []
        return StepWork(StepPlan(list(micro_batches), num_tokens), examples)

    def _example(self, step: int, row: int) -> Example:
        examples, rollout = self._examples, self._window.rollouts.get((step, row))
        first = examples.first_target(row)
        places, tokens = examples.target_places(row), examples.tokens(row)
        return Example(
            tokens if rollout is None else np.concatenate([tokens[:first], rollout]),
            first,
            prompt_targets=places[places < first],
            source=examples.source_names[examples.sources[row]],
        )
