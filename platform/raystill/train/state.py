"""Everything that a run must remember to continue exactly: weights, optimizer, position, counters.

Randomness is not remembered but derived: before each step every worker seeds torch from (seed, step, rank),
so dropout is a function of the position. Data order is a function of the step too (`batches.StepPlanner`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raystill.checkpoint.finite import require_finite_weights
from raystill.checkpoint.parts import GroupReader
from raystill.checkpoint.store import DELETE_FIX, OpenCheckpoint
from raystill.errors import DataError
from raystill.losses.balance import TermBalance
from raystill.train.metrics import SUM_NAMES, named_sums
from raystill.train.old_state import current_state
from raystill.train.settings import TrainSettings
from raystill.train.sharding import as_parts_of, copy_into, own_parts, read_like
from raystill.train.student import Student

_OPTIMIZER_KEYS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Counters:
    """What happened on the way; part of every checkpoint.

    `tokens` carried loss in steps that were taken, `positions` were computed in any, padding aside.
    """

    nonfinite_steps: int = 0
    nonfinite_streak: int = 0
    masked_steps: int = 0
    tokens: int = 0
    positions: int = 0
    spike_steps: int = 0
    spike_streak: int = 0
    recent_norms: list[float] = field(default_factory=list)


@dataclass
class TrainState:
    """A training run between two steps. `step` counts finished optimizer steps, skipped ones included.

    `window_sums_S` are the sums (`metrics.SUM_NAMES`) of the steps since the last line of metrics.jsonl.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    total_steps: int
    step: int = 0
    counters: Counters = field(default_factory=Counters)
    balance: TermBalance = field(default_factory=TermBalance)
    window_sums_S: Tensor = field(default_factory=lambda: torch.zeros(len(SUM_NAMES), dtype=torch.float64))

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that train, by name; a tied one once."""
        return {n: p for n, p in self.student.network.named_parameters() if p.requires_grad}

    def tensors(self, *, is_first: bool) -> dict[str, dict[str, Tensor]]:
        """Weights and moments for a checkpoint; where they are cut among workers, this worker's parts.

        What is whole on every worker is the first one's to write.
        """
        parameters = self.trainable()
        optimizer = {
            f"{name}.{key}": self.optimizer.state[parameter][key]
            for name, parameter in parameters.items()
            for key in _OPTIMIZER_KEYS
            if parameter in self.optimizer.state
        }
        return {
            "model": own_parts(parameters, is_first=is_first),
            "optimizer": own_parts(optimizer, is_first=is_first),
        }

    def num_bytes(self) -> int:
        """Bytes of all that trains and its moments, whole."""
        parameters = self.trainable().values()
        moments = [self.optimizer.state.get(parameter, {}) for parameter in parameters]
        found = [*parameters, *(one[key] for one in moments for key in _OPTIMIZER_KEYS if key in one)]
        return sum(tensor.numel() * tensor.element_size() for tensor in found)

    def describe(self, data_fingerprint: str) -> dict[str, Any]:
        """What a checkpoint holds besides tensors; JSON-able."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "counters": vars(self.counters),
            "balance": vars(self.balance),
            "window_sums": named_sums(self.window_sums_S),
            "scaler": self.scaler.state_dict(),
            "data_fingerprint": data_fingerprint,
        }

    def restore(self, content: OpenCheckpoint, data_fingerprint: str) -> None:
        """Continue from a checkpoint, also of an older schema; of cut weights only the own parts are read.

        Raises DataError if it belongs to another model or other data, or holds weights that are not finite.
        """
        state, where = current_state(content), content.path
        if state["data_fingerprint"] != data_fingerprint:
            raise _foreign(where, "it was made from other training rows")
        parameters, stored = self.trainable(), content.groups["model"]
        if parameters.keys() != set(stored.names()):
            raise _foreign(where, "it holds other weights than this model trains")
        for name, parameter in parameters.items():
            if parameter.shape != stored.shape(name):
                raise _foreign(where, f"{name} has another shape")
        with torch.no_grad():
            for name, parameter in parameters.items():
                value = read_like(stored, name, parameter)
                require_finite_weights([(name, value)], str(where), DELETE_FIX)
                copy_into(parameter, value)
        self._restore_optimizer(content.groups["optimizer"], parameters)
        self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self.counters = Counters(**state["counters"])
        self.balance = TermBalance(**state["balance"])
        sums = [state["window_sums"].get(name, 0.0) for name in SUM_NAMES]
        self.window_sums_S = torch.tensor(sums, dtype=torch.float64)

    def _restore_optimizer(self, stored: GroupReader, parameters: dict[str, torch.nn.Parameter]) -> None:
        names = set(stored.names())
        for name, parameter in parameters.items():
            if f"{name}.step" not in names:
                continue
            self.optimizer.state[parameter] = {
                key: as_parts_of(parameter, read_like(stored, f"{name}.{key}", parameter))
                for key in _OPTIMIZER_KEYS
            }


def seed_step(settings: TrainSettings, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one worker."""
    digest = hashlib.sha256(f"{settings.seed}:{step}:{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))


def _foreign(where: Path, why: str) -> DataError:
    return DataError(
        f"the checkpoint can't be continued: {why}",
        where=str(where),
        fix="restore the settings and the store it was made from, or start again with --fresh",
    )
