"""Sampling for transformers' `generate` in which a row depends on its own seed only.

Shape letters: B rows of a batch, T positions, V vocabulary, K stored logprobs, N rows of logits.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LogitsProcessor

from raystill.store.precision import keep_signal
from raystill.store.records import Int32Array, TopKSignal
from raystill.teacher.engine import GenerationRequest, Sampling
from raystill.teacher.flat_logprobs import MIN_LOGPROB, compute_tail_logprob


class RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy search into per-row sampling, and keeps the top k of the untouched logits as it goes.

    Greedy search takes the argmax of what this returns. With Gumbel noise from the row's own generator added
    to the row's filtered, tempered logits, that argmax is a sample from the softmax (the Gumbel-max trick,
    Gumbel 1954), and neither the batch's other rows nor their order change it. `temperature` 0 adds no noise.
    """

    def __init__(self, requests: list[GenerationRequest], device: str) -> None:
        self._requests = requests
        self._num_logprobs = max(request.num_logprobs for request in requests)
        # On the CPU: the same seed draws the same noise on every device.
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        self._device = device
        self._steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """One step: `scores` are the model's logits [B, V]; returns what greedy search maximises."""
        logits_BV = scores.float()
        noisy_BV = torch.stack(
            [
                self._perturb(logits_BV[index], request.sampling, self._generators[index])
                for index, request in enumerate(self._requests)
            ]
        )
        if self._num_logprobs:
            chosen_B = noisy_BV.argmax(dim=-1)
            self._steps.append(_topk(logits_BV, chosen_B, self._num_logprobs))
        return noisy_BV

    def signal(self, index: int, completion_token_ids: Int32Array) -> TopKSignal:
        """The signal of one row, of which the first `len(completion_token_ids)` steps count."""
        steps = self._steps[: len(completion_token_ids)]
        width = self._requests[index].num_logprobs
        ids_TK = torch.stack([ids[index, :width] for ids, _, _ in steps])
        logprobs_TK = torch.stack([logprobs[index, :width] for _, logprobs, _ in steps])
        sampled_T = torch.stack([sampled[index] for _, _, sampled in steps])
        return _signal(ids_TK, logprobs_TK, sampled_T)

    def _perturb(
        self, logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator
    ) -> torch.Tensor:
        if sampling.temperature == 0.0:
            return logits_V
        kept_V = _filter(logits_V / sampling.temperature, sampling)
        uniform_V = torch.rand(kept_V.shape, generator=generator).clamp_(min=1e-20, max=1.0 - 1e-7)
        return kept_V - (-uniform_V.log()).log().to(self._device)


def gather_topk(logits_NV: torch.Tensor, targets_N: torch.Tensor, num_logprobs: int) -> TopKSignal:
    """The signal of N positions from their logits; targets are the tokens that stand there."""
    return _signal(*_topk(logits_NV.float(), targets_N, num_logprobs))


def _topk(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, num_logprobs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Top k of the logits less logsumexp: the same as of the log-softmax, without building it."""
    normaliser_N1 = torch.logsumexp(logits_NV, dim=-1, keepdim=True)
    best_NK, ids_NK = torch.topk(logits_NV, num_logprobs, dim=-1)
    sampled_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1) - normaliser_N1.squeeze(-1)
    return ids_NK.cpu(), (best_NK - normaliser_N1).cpu(), sampled_N.cpu()


def _signal(ids_TK: torch.Tensor, logprobs_TK: torch.Tensor, sampled_T: torch.Tensor) -> TopKSignal:
    topk_TK = np.clip(logprobs_TK.numpy(), MIN_LOGPROB, 0.0)
    return keep_signal(
        ids_TK.numpy().astype(np.int32),
        topk_TK,
        np.clip(sampled_T.numpy(), MIN_LOGPROB, 0.0),
        compute_tail_logprob(topk_TK),
    )


def _filter(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Top-k, then top-p (nucleus: Holtzman et al., arXiv:1904.09751); what is cut becomes -inf."""
    if 0 < sampling.top_k < logits_V.shape[-1]:
        threshold = torch.topk(logits_V, sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, -torch.inf)
    if sampling.top_p < 1.0:
        sorted_V, order_V = torch.sort(logits_V, descending=True)
        mass_V = torch.softmax(sorted_V, dim=-1).cumsum(dim=-1)
        cut_V = torch.zeros_like(mass_V, dtype=torch.bool)
        cut_V[1:] = mass_V[:-1] >= sampling.top_p
        logits_V = logits_V.masked_fill(torch.zeros_like(cut_V).scatter(0, order_V, cut_V), -torch.inf)
    return logits_V
