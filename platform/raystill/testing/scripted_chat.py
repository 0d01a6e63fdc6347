"""The scripted endpoint's rules for one chat completion: what it refuses, what it answers, what it counts."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raystill.testing.scripted_answer import (
    ScriptedAnswer,
    count_prompt_tokens,
    last_text,
    logprob_entries,
    schema_instance,
    scripted_answer,
)

Json = dict[str, Any]
_IGNORABLE = ("logprobs", "top_logprobs", "seed", "n", "response_format")


@dataclass(frozen=True)
class Latency:
    """Lognormal seconds: `median`, `sigma` of the logarithm, cut to [`low`, `high`]; a median of 0: none."""

    median: float = 0.0
    sigma: float = 0.0
    low: float = 0.0
    high: float = 60.0

    def draw(self, noise: random.Random) -> float:
        """Seconds that one request takes."""
        if self.median <= 0.0:
            return 0.0
        return min(self.high, max(self.low, self.median * noise.lognormvariate(0.0, self.sigma)))


@dataclass(frozen=True)
class Capabilities:
    """What the endpoint can do. What it can't, it refuses with a 400, or ignores where `ignores` is set.

    `reasoning_tokens`: thoughts of so many tokens come with every answer and are part of its usage.
    """

    model: str = "scripted"
    api_key: str | None = None
    max_top_logprobs: int = 20
    max_choices: int = 16
    has_seed: bool = True
    has_json_schema: bool = True
    ignores: bool = False
    context_length: int = 8192
    reasoning_tokens: int = 0


class Refused(Exception):  # noqa: N818 (an answer, not a defect)
    """The endpoint's error answer: a status and OpenAI's error object."""

    def __init__(self, status: int, code: str, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass
class Counts:
    """What the endpoint has seen and billed. `by_body` counts requests per `body_hash`."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by_body: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> Json:
        """Plain numbers, with `distinct` bodies and the most often asked one's count."""
        facts: Json = {**vars(self), "by_body": dict(self.by_body)}
        facts["distinct"] = len(self.by_body)
        facts["most_asked"] = max(self.by_body.values(), default=0)
        return facts


def body_hash(body: Json) -> str:
    """Sixteen hex digits that name a request body, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def chat_completion(body: Json, can: Capabilities, number: int) -> Json:
    """The answer to one request body. Raises Refused."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "invalid_messages", "messages must be a list of at least one message")
    body = _check(body, messages, can)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    is_greedy = body.get("temperature") == 0
    seed = 0 if is_greedy else int(body.get("seed") or 0)
    answers = [
        _shaped(body, scripted_answer(messages, seed=seed, index=index, max_tokens=limit))
        for index in range(int(body.get("n") or 1))
    ]
    prompt = count_prompt_tokens(messages)
    completion = sum(len(answer.tokens) + can.reasoning_tokens for answer in answers)
    return {
        "id": f"chatcmpl-{body_hash(body)}-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000 + number,
        "model": can.model,
        "choices": [_choice(index, answer, body, can) for index, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": can.reasoning_tokens * len(answers)},
        },
    }


def _check(body: Json, messages: list[Json], can: Capabilities) -> Json:
    if body.get("model") != can.model:
        raise Refused(404, "model_not_found", f"The model `{body.get('model')}` does not exist")
    if body.get("stream"):
        raise Refused(400, "unsupported_parameter", "streaming is not scripted")
    if "<<error>>" in last_text(messages):
        raise Refused(400, "content_policy_violation", "this prompt breaks the content policy")
    if count_prompt_tokens(messages) > can.context_length:
        message = f"This model's maximum context length is {can.context_length} tokens"
        raise Refused(400, "context_length_exceeded", message)
    excess = {
        "top_logprobs": int(body.get("top_logprobs") or 0) > can.max_top_logprobs,
        "logprobs": bool(body.get("logprobs")) and can.max_top_logprobs == 0,
        "n": int(body.get("n") or 1) > can.max_choices,
        "seed": body.get("seed") is not None and not can.has_seed,
        "response_format": (body.get("response_format") or {}).get("type") == "json_schema"
        and not can.has_json_schema,
    }
    wrong = [name for name in _IGNORABLE if excess.get(name)]
    if wrong and not can.ignores:
        raise Refused(400, "unsupported_value", f"Invalid value for '{wrong[0]}': {body[wrong[0]]}")
    return {name: value for name, value in body.items() if name not in wrong}


def _shaped(body: Json, answer: ScriptedAnswer) -> ScriptedAnswer:
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema" and not answer.refusal:
        text = json.dumps(schema_instance(form["json_schema"]["schema"]))
        return ScriptedAnswer(tuple(text[at : at + 4] for at in range(0, len(text), 4)), answer.finish_reason)
    return answer


def _choice(index: int, answer: ScriptedAnswer, body: Json, can: Capabilities) -> Json:
    message: Json = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
    finish: str = answer.finish_reason
    if answer.refusal is not None:
        message["content"] = None
    elif body.get("tools") and body.get("tool_choice") == "required":
        function = body["tools"][0]["function"]
        arguments = json.dumps(schema_instance(function.get("parameters", {})))
        call = {"name": function["name"], "arguments": arguments}
        message |= {"content": None, "tool_calls": [{"id": "call_0", "type": "function", "function": call}]}
        finish = "tool_calls"
    if can.reasoning_tokens:
        message["reasoning_content"] = " ".join(["hm"] * can.reasoning_tokens)
    logprobs = None
    if body.get("logprobs"):
        entries = logprob_entries(answer.tokens, int(body.get("top_logprobs") or 0))
        logprobs = {"content": entries, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}
