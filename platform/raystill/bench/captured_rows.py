"""Rows and exact distributions of a real model, in this process: what storage is measured on.

Shape letters: T completion tokens, K logprobs per token.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystill.config.schema import Config
from raystill.demo.tasks import iter_prompt_rows
from raystill.store.identity import StoreIdentity, request_key, row_seed
from raystill.store.records import TeacherRow, TopKSignal
from raystill.teacher.build_engine import build_engine
from raystill.teacher.engine import Generation, GenerationRequest, Sampling
from raystill.teacher.identify import KnownTeacher, identify_teacher

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Captured:
    """Rows with their signals, the identity of a store for them, and the teacher's vocabulary."""

    rows: tuple[TeacherRow, ...]
    identity: StoreIdentity
    vocab_size: int

    @property
    def num_tokens(self) -> int:
        """Completion tokens of all rows."""
        return sum(len(row.completion_token_ids) for row in self.rows)


def capture_rows(directory: Path, num_prompts: int, max_new_tokens: int, num_logprobs: int) -> Captured:
    """Complete demo prompts with the transformers engine at temperature 1, and keep the top k."""
    config = Config.model_validate(
        {
            "teacher": {
                "engine": "transformers",
                "open": {"model": {"name": str(directory)}, "pipeline": {"batch_size": _BATCH_SIZE}},
                "signals": {"num_logprobs": num_logprobs},
            }
        }
    )
    teacher = identify_teacher(config)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens)
    chats = [prompt["messages"] for prompt in iter_prompt_rows(num_prompts)]
    requests = []
    for index, messages in enumerate(chats):
        ids = np.asarray(teacher.chat.render_prompt_ids(messages), np.int32)
        key = request_key(teacher.identity, ids, vars(sampling), seed=index)
        requests.append(GenerationRequest(key, ids, sampling, row_seed(key), num_logprobs))
    generations = asyncio.run(_generate(teacher, requests, num_logprobs))
    rows = [
        TeacherRow(
            key=request.key,
            prompt_id=f"p{index}",
            split="train",
            source="demo",
            messages=json.dumps(chats[index]),
            prompt_token_ids=request.prompt_token_ids,
            completion=teacher.chat.decode(
                generation.completion_token_ids.tolist(), skip_special_tokens=True
            ),
            completion_token_ids=generation.completion_token_ids,
            finish_reason=generation.finish_reason,
            flags=(),
            teacher_id=teacher.identity.teacher_id,
            sample_index=0,
            seconds=generation.seconds,
            signal=generation.signal,
        )
        for index, (request, generation) in enumerate(zip(requests, generations, strict=True))
    ]
    return Captured(tuple(rows), teacher.identity, teacher.facts.files.vocab_size)


def exact_signals(directory: Path, rows: tuple[TeacherRow, ...], num_logprobs: int) -> list[TopKSignal]:
    """The same rows' top k in float32 by the plain forward pass: what nothing has rounded yet.

    Its logprobs are float64 arrays of float32 values, unlike a stored signal's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    signals = []
    for row in rows:
        ids = torch.as_tensor(np.concatenate([row.prompt_token_ids, row.completion_token_ids])[None]).long()
        with torch.inference_mode():
            logits_TV = model(input_ids=ids).logits[0, len(row.prompt_token_ids) - 1 : -1]
            best = torch.log_softmax(logits_TV.double(), dim=-1).topk(num_logprobs)
        logprobs_TK = best.values.float().double().numpy()
        left_T = np.maximum(1.0 - np.exp(logprobs_TK).sum(axis=1), 0.0)
        with np.errstate(divide="ignore"):
            tail_T = np.log(left_T).astype(np.float32)
        signals.append(TopKSignal(best.indices.int().numpy(), logprobs_TK, np.zeros_like(tail_T), tail_T))
    return signals


async def _generate(
    teacher: KnownTeacher, requests: list[GenerationRequest], num_logprobs: int
) -> list[Generation]:
    engine = build_engine(teacher.blueprint(num_logprobs=num_logprobs, scoring=False))
    try:
        return list(await asyncio.gather(*(engine.generate(request) for request in requests)))
    finally:
        engine.shutdown()
