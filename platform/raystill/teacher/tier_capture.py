"""Sampled and hidden signals from a transformers model: teacher forcing, one completion at a time.

Shape letters: T completion tokens, D hidden size, V vocabulary, N rows of one chunk, S draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystill.store.identity import row_seed
from raystill.store.records import Int32Array
from raystill.store.tier_records import HiddenSignal, SampledSignal, TierKind, TierSignal
from raystill.teacher.errors import EngineRowError

# Float64 probabilities of one chunk.
_CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class TierRequest:
    """Teacher-force a completion and return its signal of `kind`; `num_draws` matters to `sampled`."""

    key: str
    prompt_token_ids: Int32Array
    completion_token_ids: Int32Array
    kind: TierKind
    num_draws: int


@torch.inference_mode()
def capture_tier(model: Any, request: TierRequest) -> TierSignal:
    """The signal of one completion. Draws come from the request key alone, so that asking again repeats them.

    Raises EngineRowError for hidden states that float16 can't hold.
    """
    start, num_tokens = len(request.prompt_token_ids), len(request.completion_token_ids)
    device = model.get_input_embeddings().weight.device
    ids = np.concatenate([request.prompt_token_ids, request.completion_token_ids]).astype(np.int64)
    input_ids_BT = torch.from_numpy(ids)[None].to(device)
    if request.kind == "hidden":
        states_BTD = model.get_decoder()(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        hidden_TD = states_BTD[0, start - 1 : -1].to(torch.float16).cpu().numpy()
        if not np.isfinite(hidden_TD).all():
            raise EngineRowError("hidden_overflow", "a hidden state is beyond float16's range")
        return HiddenSignal(hidden_TD)
    # The model's own forward pass: some families rescale logits after the head.
    output = model(input_ids=input_ids_BT, use_cache=False, logits_to_keep=num_tokens + 1)
    targets_T = torch.from_numpy(ids[start:]).to(device)
    return _draw(output.logits[0, :-1], targets_T, request)


def _draw(logits_TV: torch.Tensor, targets_T: torch.Tensor, request: TierRequest) -> SampledSignal:
    """`num_draws` multinomial draws per row, with replacement, from softmax in float64."""
    generator = torch.Generator(logits_TV.device).manual_seed(row_seed(request.key))
    chunk = max(1, _CHUNK_BYTES // (8 * logits_TV.shape[1]))
    num_unique, ids, counts, sampled = [], [], [], []
    for start in range(0, len(logits_TV), chunk):
        logprobs_NV = torch.log_softmax(logits_TV[start : start + chunk].double(), dim=-1)
        drawn_NS = torch.multinomial(
            logprobs_NV.exp(), request.num_draws, replacement=True, generator=generator
        )
        targets_N1 = targets_T[start : start + chunk, None]
        sampled.append(logprobs_NV.gather(1, targets_N1)[:, 0].float().cpu().numpy())
        for row_S in drawn_NS.cpu().numpy():
            unique, count = np.unique(row_S, return_counts=True)
            num_unique.append(len(unique))
            ids.append(unique.astype(np.int32))
            counts.append(count.astype(np.uint16))
    return SampledSignal(
        num_draws=request.num_draws,
        num_unique_T=np.array(num_unique, np.int32),
        draw_ids_E=np.concatenate(ids) if ids else np.empty(0, np.int32),
        draw_counts_E=np.concatenate(counts) if counts else np.empty(0, np.uint16),
        sampled_logprob_T=np.concatenate(sampled) if sampled else np.empty(0, np.float32),
    )
