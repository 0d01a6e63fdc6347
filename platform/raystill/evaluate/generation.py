"""Batched greedy generation for evaluation: length-sorted batches, KV cache, finished rows leave the batch.

Shape letters: B rows, T prompt tokens (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from raystill.errors import DataError


@dataclass(frozen=True)
class GreedySettings:
    """How completions are made. `context` is the longest sequence the model takes."""

    max_new_tokens: int
    eos_ids: frozenset[int]
    pad_id: int
    batch_size: int
    context: int
    padding_side: Literal["left", "right"] = "left"


@dataclass(frozen=True)
class GreedyCompletion:
    """One completion; `token_ids` include the EOS that ended it, if one did."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


def generate_greedy(
    model: Any, prompts: Sequence[Sequence[int]], settings: GreedySettings
) -> list[GreedyCompletion]:
    """Complete every prompt (token ids) with the most likely tokens; results are in the order of `prompts`.

    A prompt that leaves no room in the context gets an empty completion with finish reason `length`. Raises
    DataError if the model's logits are not finite: such a checkpoint is broken, not merely bad.
    """
    completions: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    with_room = [index for index in by_length if 0 < len(prompts[index]) < settings.context]
    for start in range(0, len(with_room), settings.batch_size):
        rows = with_room[start : start + settings.batch_size]
        batch = _Batch(model, [prompts[row] for row in rows], settings)
        for row, (token_ids, stopped) in zip(rows, batch.run(), strict=True):
            completions[row], ended[row] = token_ids, stopped
    return [
        GreedyCompletion(token_ids, "stop" if stopped else "length")
        for token_ids, stopped in zip(completions, ended, strict=True)
    ]


class _Batch:
    """One batch in flight. `active[b]` is the row of the batch that slot b of the cache belongs to."""

    def __init__(self, model: Any, prompts: list[Sequence[int]], settings: GreedySettings) -> None:
        self._model = model
        self._settings = settings
        self._device = model.device
        lengths = [len(prompt) for prompt in prompts]
        self._room = [min(settings.max_new_tokens, settings.context - length) for length in lengths]
        self._token_ids: list[list[int]] = [[] for _ in prompts]
        self._stopped = [False] * len(prompts)
        self._active = list(range(len(prompts)))
        self._input_ids_BT, self._mask_BT = _pad(prompts, settings, self._device)
        self._positions_BT = (self._mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        last = max(lengths) - 1
        self._last_B = torch.tensor(
            [length - 1 if settings.padding_side == "right" else last for length in lengths],
            device=self._device,
        )
        self._cache: Any = None

    @torch.inference_mode()
    def run(self) -> list[tuple[list[int], bool]]:
        """Tokens of every row, and whether an EOS ended it."""
        while self._active:
            next_B = self._step()
            survivors = self._append(next_B.tolist())
            if not self._active:
                break
            self._advance(next_B, survivors)
        return list(zip(self._token_ids, self._stopped, strict=True))

    def _step(self) -> torch.Tensor:
        output = self._model(
            input_ids=self._input_ids_BT,
            attention_mask=self._mask_BT,
            position_ids=self._positions_BT,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=self._logits_to_keep(),
        )
        self._cache = output.past_key_values
        logits_BV: torch.Tensor = output.logits[:, -1]
        if self._input_ids_BT.shape[1] > 1 and self._settings.padding_side == "right":
            rows_B = torch.arange(len(self._last_B), device=self._device)
            logits_BV = output.logits[rows_B, self._last_B]
        best_B = logits_BV.argmax(dim=-1)
        # NaN wins every argmax, so the winners tell whether the whole row is finite enough to trust.
        if not torch.isfinite(logits_BV.gather(1, best_B[:, None])).all():
            raise DataError("the model computes logits that are not finite", fix="train it again")
        return best_B

    def _logits_to_keep(self) -> int:
        prefill = self._input_ids_BT.shape[1] > 1
        return 0 if prefill and self._settings.padding_side == "right" else 1  # 0 keeps all of them

    def _append(self, next_ids: list[int]) -> list[int]:
        """Give every active row its token; returns the cache slots of rows that go on."""
        survivors = []
        for slot, (row, token_id) in enumerate(zip(self._active, next_ids, strict=True)):
            self._token_ids[row].append(token_id)
            self._stopped[row] = token_id in self._settings.eos_ids
            if not self._stopped[row] and len(self._token_ids[row]) < self._room[row]:
                survivors.append(slot)
        self._active = [self._active[slot] for slot in survivors]
        return survivors

    def _advance(self, next_B: torch.Tensor, survivors: list[int]) -> None:
        if len(survivors) < len(next_B):
            keep = torch.tensor(survivors, device=self._device)
            self._cache.batch_select_indices(keep)
            next_B = next_B[keep]
            self._mask_BT = self._mask_BT[keep]
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(next_B), 1)], dim=1)
        self._input_ids_BT = next_B[:, None]
        self._positions_BT = self._mask_BT.sum(dim=1, keepdim=True) - 1


def _pad(
    prompts: list[Sequence[int]], settings: GreedySettings, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    input_ids_BT = torch.full((len(prompts), longest), settings.pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        first = longest - len(prompt) if settings.padding_side == "left" else 0
        input_ids_BT[row, first : first + len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
        mask_BT[row, first : first + len(prompt)] = 1
    return input_ids_BT.to(device), mask_BT.to(device)
