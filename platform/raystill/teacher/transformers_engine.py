"""The transformers engine: for models that vLLM lacks, machines without vLLM, and exact scoring.

Shape letters: B rows of a batch, T positions, V vocabulary, K stored logprobs, D hidden, N rows of logits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raystill.checkpoint.finite import require_finite_weights
from raystill.errors import EnvironmentFault
from raystill.store.records import TopKSignal
from raystill.store.tier_records import TierSignal
from raystill.teacher.engine import FinishReason, Generation, GenerationRequest, ScoreRequest
from raystill.teacher.errors import EngineRowError
from raystill.teacher.row_batcher import RowBatcher
from raystill.teacher.row_sampler import RowSampler, gather_topk
from raystill.teacher.tier_capture import TierRequest, capture_tier

if TYPE_CHECKING:
    from pathlib import Path

# Float32 logits of one scoring chunk; larger chunks gain nothing on any device tried.
_CHUNK_LOGITS_BYTES = 64 * 2**20
# Settings by which some families rescale logits after the head: scored with the model's own forward pass.
_LOGIT_SCALINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class TransformersSettings:
    """How the model is loaded and batched. `pad_token_id` fills batches and is masked by position."""

    directory: Path
    device: str
    dtype: str
    attn_implementation: str
    trust_remote_code: bool
    batch_size: int
    use_cache: bool
    context_length: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int


class TransformersEngine:
    """`TeacherEngine` on `generate` of transformers. Rows are gathered into batches as they come."""

    def __init__(self, settings: TransformersSettings) -> None:
        """Load the model.

        Raises EnvironmentFault where it doesn't fit this machine, DataError for weights that are not finite.
        """
        from transformers import AutoModelForCausalLM

        self._settings = settings
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                settings.directory,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attn_implementation,
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
            )
            self._model.to(settings.device).eval()
        except (RuntimeError, ValueError, ImportError) as error:
            raise EnvironmentFault(
                f"transformers could not load the teacher: {str(error).splitlines()[0]}",
                where=str(settings.directory),
                fix="check that the model fits into memory and that transformers knows its architecture",
            ) from error
        require_finite_weights(
            self._model.named_parameters(),
            str(settings.directory),
            "fetch the teacher again: it can only answer with garbage",
        )
        self._generations = RowBatcher(self._generate_batch, settings.batch_size)
        self._scores = RowBatcher(self._score_batch, settings.batch_size)
        self._tiers: RowBatcher[TierRequest, TierSignal] = RowBatcher(self._capture_batch, 1)

    @property
    def rows_in_flight(self) -> int:
        """Two batches: one that runs and one that waits."""
        return 2 * self._settings.batch_size

    async def generate(self, request: GenerationRequest) -> Generation:
        """Complete one prompt, in a batch with others. Raises EngineRowError."""
        context = self._settings.context_length
        if not 0 < len(request.prompt_token_ids) < context:
            raise EngineRowError(
                "prompt_too_long" if len(request.prompt_token_ids) else "prompt_empty",
                f"{len(request.prompt_token_ids)} prompt tokens in a context of {context}",
            )
        return await self._generations.submit(request)

    async def score(self, request: ScoreRequest) -> TopKSignal:
        """Teacher-force one completion, in a batch with others. Raises EngineRowError."""
        total = len(request.prompt_token_ids) + len(request.completion_token_ids)
        if total > self._settings.context_length:
            raise EngineRowError("too_long", f"{total} tokens, context {self._settings.context_length}")
        return await self._scores.submit(request)

    async def capture(self, request: TierRequest) -> TierSignal:
        """Draws or hidden states of one completion. Raises EngineRowError."""
        total = len(request.prompt_token_ids) + len(request.completion_token_ids)
        if len(request.prompt_token_ids) == 0 or total > self._settings.context_length:
            raise EngineRowError("too_long", f"{total} tokens, context {self._settings.context_length}")
        return await self._tiers.submit(request)

    def shutdown(self) -> None:
        """Nothing outlives the engine: its batches run in threads of this process."""
        self._generations.close()
        self._scores.close()
        self._tiers.close()

    @torch.inference_mode()
    def _capture_batch(self, requests: list[TierRequest]) -> list[TierSignal]:
        return [capture_tier(self._model, request) for request in requests]

    def _generate_batch(self, requests: list[GenerationRequest]) -> list[Generation]:
        from transformers import GenerationConfig, LogitsProcessorList

        settings, started = self._settings, time.monotonic()
        input_ids_BT, mask_BT = self._pad_left([r.prompt_token_ids.tolist() for r in requests])
        limits = [
            min(r.sampling.max_new_tokens, settings.context_length - len(r.prompt_token_ids))
            for r in requests
        ]
        sampler = RowSampler(requests, settings.device)
        options = GenerationConfig(
            max_new_tokens=max(limits),
            do_sample=False,
            use_cache=settings.use_cache,
            eos_token_id=list(settings.stop_token_ids),
            pad_token_id=settings.pad_token_id,
        )
        output_BT = self._model.generate(
            input_ids=input_ids_BT,
            attention_mask=mask_BT,
            generation_config=options,
            logits_processor=LogitsProcessorList([sampler]),
        )
        rows = output_BT[:, input_ids_BT.shape[1] :].cpu().numpy().astype(np.int32)
        seconds = (time.monotonic() - started) / len(requests)
        generations = []
        for index, (request, limit) in enumerate(zip(requests, limits, strict=True)):
            ids, reason = self._cut(rows[index], limit)
            signal = sampler.signal(index, ids) if request.num_logprobs else None
            generations.append(Generation(request.key, ids, reason, signal, seconds))
        return generations

    def _cut(
        self, ids: np.ndarray[Any, np.dtype[np.int32]], limit: int
    ) -> tuple[np.ndarray[Any, np.dtype[np.int32]], FinishReason]:
        """The row up to and with its first stop token, or up to its own limit."""
        ids = ids[:limit]
        stops = np.flatnonzero(np.isin(ids, self._settings.stop_token_ids))
        if len(stops):
            return ids[: stops[0] + 1].copy(), "stop"
        return ids.copy(), "length"

    @torch.inference_mode()
    def _score_batch(self, requests: list[ScoreRequest]) -> list[TopKSignal]:
        if any(getattr(self._model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_SCALINGS):
            return [self._score_by_forward(request) for request in requests]
        texts = [[*r.prompt_token_ids.tolist(), *r.completion_token_ids.tolist()] for r in requests]
        width = max(map(len, texts))
        pad = self._settings.pad_token_id
        # Right padding: a causal model never sees what comes after a token, so no mask is needed.
        input_ids_BT = torch.tensor(
            [text + [pad] * (width - len(text)) for text in texts], device=self._settings.device
        )
        backbone = self._model.get_decoder()
        hidden_BTD = backbone(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        rows = [
            hidden_BTD[index, len(r.prompt_token_ids) - 1 : len(texts[index]) - 1]
            for index, r in enumerate(requests)
        ]
        targets = torch.cat([torch.as_tensor(r.completion_token_ids) for r in requests])
        num_logprobs = max(r.num_logprobs for r in requests)
        whole = self._project(torch.cat(rows), targets.to(self._settings.device).long(), num_logprobs)
        return _split_signal(whole, [len(row) for row in rows], [r.num_logprobs for r in requests])

    def _project(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor, num_logprobs: int) -> TopKSignal:
        """Head, top k and normalisation in chunks; float32, never more than a chunk of logits at a time."""
        head = self._model.get_output_embeddings()
        chunk = max(1, _CHUNK_LOGITS_BYTES // (4 * head.weight.shape[0]))
        parts = [
            gather_topk(
                head(hidden_ND[start : start + chunk]), targets_N[start : start + chunk], num_logprobs
            )
            for start in range(0, len(hidden_ND), chunk)
        ]
        return _join_signals(parts)

    def _score_by_forward(self, request: ScoreRequest) -> TopKSignal:
        ids = [*request.prompt_token_ids.tolist(), *request.completion_token_ids.tolist()]
        num_tokens = len(request.completion_token_ids)
        device = self._settings.device
        output = self._model(
            input_ids=torch.tensor([ids], device=device), use_cache=False, logits_to_keep=num_tokens + 1
        )
        targets = torch.as_tensor(request.completion_token_ids, device=device).long()
        return gather_topk(output.logits[0, :-1], targets, request.num_logprobs)

    def _pad_left(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts end in the same column, where generation starts; [B, T] ids and mask."""
        width = max(map(len, prompts))
        pad, device = self._settings.pad_token_id, self._settings.device
        ids_BT = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        return ids_BT, mask_BT


def _join_signals(parts: list[TopKSignal]) -> TopKSignal:
    return TopKSignal(
        topk_ids_TK=np.concatenate([part.topk_ids_TK for part in parts]),
        topk_logprobs_TK=np.concatenate([part.topk_logprobs_TK for part in parts]),
        sampled_logprob_T=np.concatenate([part.sampled_logprob_T for part in parts]),
        tail_logprob_T=np.concatenate([part.tail_logprob_T for part in parts]),
    )


def _split_signal(whole: TopKSignal, lengths: list[int], widths: list[int]) -> list[TopKSignal]:
    if any(width != whole.num_logprobs for width in widths):
        raise ValueError("one batch holds requests for different numbers of logprobs")
    ends = np.cumsum(lengths)
    return [
        TopKSignal(
            topk_ids_TK=whole.topk_ids_TK[end - length : end],
            topk_logprobs_TK=whole.topk_logprobs_TK[end - length : end],
            sampled_logprob_T=whole.sampled_logprob_T[end - length : end],
            tail_logprob_T=whole.tail_logprob_T[end - length : end],
        )
        for length, end in zip(lengths, ends, strict=True)
    ]


def available_attention(wanted: str, device: str) -> tuple[str, str]:
    """The attention that can be had, and a note where it isn't the one that was asked for."""
    from transformers.utils import is_flash_attn_2_available

    if wanted == "flash_attention_2" and (device != "cuda" or not is_flash_attn_2_available()):
        return "sdpa", "flash_attention_2 is not available here: the teacher runs with sdpa"
    return wanted, ""
