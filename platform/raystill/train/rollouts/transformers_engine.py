"""Rollouts by the student itself, in process: a KV cache, and rows that leave the batch when they end.

Shape letters: B rows of a batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raystill.errors import DivergenceError
from raystill.store.records import Int32Array
from raystill.train.device import autocast
from raystill.train.rollouts.engine import RolloutRequest, RolloutSampling
from raystill.train.settings import Precision
from raystill.train.student import Student


class TransformersRollouts:
    """`RolloutEngine` on the student's own weights: always fresh, bit for bit reproducible on a CPU."""

    def __init__(self, student: Student, sampling: RolloutSampling, precision: Precision) -> None:
        self._student = student
        self._sampling = sampling
        self._precision = precision

    def refresh(self) -> None:
        """Nothing: it reads the weights that train."""

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Int32Array]:
        """Sampled completions, in the order of `requests`."""
        network = self._student.network
        was_training = network.training
        network.eval()
        found = [np.zeros(0, dtype=np.int32) for _ in requests]
        # The longest first, so that rows of a batch are about as long as each other.
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt_ids))
        order = [index for index in order if 0 < len(requests[index].prompt_ids) < self._sampling.context]
        size = self._sampling.batch_size
        with torch.no_grad(), autocast(self._student.device, self._precision):
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                batch = _Rows(self._student, [requests[row] for row in rows], self._sampling)
                for row, token_ids in zip(rows, batch.run(), strict=True):
                    found[row] = np.array(token_ids, dtype=np.int32)
        network.train(was_training)
        return found

    def close(self) -> None:
        """Nothing to close."""


class _Rows:
    """One batch in flight, padded on the left. `active[b]` is the row that slot b of the cache belongs to."""

    def __init__(
        self, student: Student, requests: Sequence[RolloutRequest], sampling: RolloutSampling
    ) -> None:
        self._model: Any = student.causal_lm
        self._sampling = sampling
        device = student.device
        lengths = [len(request.prompt_ids) for request in requests]
        self._room = [min(sampling.max_new_tokens, sampling.context - length) for length in lengths]
        # Drawn for the whole row at once: a row's randomness never depends on when others end.
        self._uniform_BT = torch.stack([_draw(request.seed, sampling.max_new_tokens) for request in requests])
        self._token_ids: list[list[int]] = [[] for _ in requests]
        self._active = list(range(len(requests)))
        width = max(lengths)
        self._input_ids_BT = torch.full((len(requests), width), student.pad_id, dtype=torch.long)
        self._mask_BT = torch.zeros((len(requests), width), dtype=torch.long)
        for row, request in enumerate(requests):
            self._input_ids_BT[row, width - lengths[row] :] = torch.from_numpy(
                request.prompt_ids.astype(np.int64)
            )
            self._mask_BT[row, width - lengths[row] :] = 1
        self._input_ids_BT, self._mask_BT = self._input_ids_BT.to(device), self._mask_BT.to(device)
        self._positions_BT = (self._mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        self._cache: Any = None

    def run(self) -> list[list[int]]:
        """Tokens of every row."""
        for place in range(self._sampling.max_new_tokens):
            output = self._model(
                input_ids=self._input_ids_BT,
                attention_mask=self._mask_BT,
                position_ids=self._positions_BT,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self._cache = output.past_key_values
            uniform_B = self._uniform_BT[self._active, place]
            next_B = sample(output.logits[:, -1], uniform_B, self._sampling)
            survivors = self._append(next_B.tolist())
            if not survivors:
                break
            self._advance(next_B, survivors)
        return self._token_ids

    def _append(self, next_ids: list[int]) -> list[int]:
        """Give every active row its token; returns the cache slots of rows that go on."""
        survivors = []
        for slot, (row, token_id) in enumerate(zip(self._active, next_ids, strict=True)):
            self._token_ids[row].append(token_id)
            if token_id not in self._sampling.eos_ids and len(self._token_ids[row]) < self._room[row]:
                survivors.append(slot)
        self._active = [self._active[slot] for slot in survivors]
        return survivors

    def _advance(self, next_B: Tensor, survivors: list[int]) -> None:
        if len(survivors) < len(next_B):
            keep = torch.tensor(survivors, device=next_B.device)
            self._cache.batch_select_indices(keep)
            next_B, self._mask_BT = next_B[keep], self._mask_BT[keep]
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(next_B), 1)], dim=1)
        self._input_ids_BT = next_B[:, None]
        self._positions_BT = self._mask_BT.sum(dim=1, keepdim=True) - 1


def _draw(seed: int, count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(count))


def sample(logits_BV: Tensor, uniform_B: Tensor, sampling: RolloutSampling) -> Tensor:
    """[B] token ids: the inverse of each row's cumulative distribution at its own uniform number.

    Raises DivergenceError for logits that are not finite: such a student has nothing to say.
    """
    logits_BV = logits_BV.double() / sampling.temperature
    if not bool(torch.isfinite(logits_BV.amax(dim=-1)).all()):
        raise DivergenceError(
            "the student computes logits that are not finite, so it can't make rollouts",
            where="train.distillation.teacher.rollouts",
            fix="lower the learning rate, or start again with --fresh",
        )
    probabilities_BV = torch.softmax(logits_BV, dim=-1)
    order_BV = None
    if sampling.top_p < 1.0:  # nucleus: the most likely tokens until they hold top_p (arXiv:1904.09751)
        probabilities_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        probabilities_BV = probabilities_BV.masked_fill(before_BV >= sampling.top_p, 0.0)
    mass_BV = probabilities_BV.cumsum(dim=-1)
    wanted_B1 = uniform_B.to(mass_BV).unsqueeze(-1) * mass_BV[:, -1:]
    place_B1 = torch.searchsorted(mass_BV, wanted_B1, right=True).clamp_(max=mass_BV.shape[1] - 1)
    return (place_B1 if order_BV is None else order_BV.gather(1, place_B1)).squeeze(-1)
