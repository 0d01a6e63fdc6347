"""The chat completions format on the wire: bodies out, answers in. Field names are OpenAI's.

Answers are decoded into structs that hold what raystill keeps: three to five times as fast as the `openai`
package's models where logprobs come with every token, and as strict about the types of these fields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from raystill.teacher.engine import GenerationRequest

LimitName = Literal["max_tokens", "max_completion_tokens"]


class TopLogprob(msgspec.Struct):
    """One alternative at one position. `bytes` are the token's own, where it is part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct):
    """The sampled token at one position, and its alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(msgspec.Struct):
    """Logprobs of a completion."""

    content: list[TokenLogprob] | None = None


class Message(msgspec.Struct):
    """The completion. Thoughts come as `reasoning_content` or `reasoning`, by server."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """One completion. `token_ids` only from vLLM."""

    message: Message
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None
    token_ids: list[int] | None = None


class PromptDetails(msgspec.Struct):
    """Part of `usage`."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """Part of `usage`."""

    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Tokens of one answer, as the endpoint counts them."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class ChatAnswer(msgspec.Struct):
    """A whole answer, or the error object that stands where one should be."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: WireUsage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    prompt_token_ids: list[int] | None = None


_DECODER = msgspec.json.Decoder(ChatAnswer)


def decode_answer(body: bytes) -> ChatAnswer:
    """The answer in `body`. Raises ValueError for what is not one: no JSON, other types, half a body."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def parse_error(body: bytes) -> tuple[str, str]:
    """(code, message) of an error body of any shape: OpenAI's object, a string, text, HTML."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", body[:400].decode("utf-8", "replace")
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        code = error.get("code") or error.get("type") or ""
        message = error.get("message") or error.get("detail") or json.dumps(error)
        return str(code), str(message)
    return "", str(error)


@dataclass(frozen=True)
class BodyShape:
    """Which optional fields this endpoint takes; the probe finds out. `num_logprobs` is what is asked for."""

    model: str
    limit_name: LimitName = "max_tokens"
    sends_seed: bool = True
    num_logprobs: int = 0
    asks_token_ids: bool = False


def build_body(shape: BodyShape, request: GenerationRequest) -> bytes:
    """The request's body; built once, sent again as it is."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": shape.model,
        "messages": json.loads(request.messages),
        shape.limit_name: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if shape.sends_seed:
        body["seed"] = request.seed
    if sampling.json_schema is not None:
        schema = {"name": "completion", "strict": True, "schema": json.loads(sampling.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.num_logprobs and shape.num_logprobs:
        body |= {"logprobs": True, "top_logprobs": shape.num_logprobs}
        if shape.asks_token_ids:
            body |= {"return_tokens_as_token_ids": True, "return_token_ids": True}
    return encode(body)


def encode(body: dict[str, Any]) -> bytes:
    """`body` as compact JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
