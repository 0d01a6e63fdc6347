"""What the scripted endpoint answers: a pure function of the messages, so that a test can check every row.

A completion begins with a tag that only its messages have. Markers in the last message script the unusual:
`<<refuse>>` a refusal, `<<filter>>` finish_reason content_filter, `<<empty>>` no text, `<<error>>` a
permanent 400, `<<long>>` more words than any limit.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

Finish = Literal["stop", "length", "content_filter", "tool_calls"]

_WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "juniper", "kelp",
    "larch", "maple", "north", "otter", "pine", "quartz", "river", "stone", "tide", "umber", "vale",
    "willow", "yarrow",
)  # fmt: skip
_LONG = 4096
_LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class ScriptedAnswer:
    """One choice. `tokens` joined are the content; they are what usage counts."""

    tokens: tuple[str, ...]
    finish_reason: Finish
    refusal: str | None = None

    @property
    def content(self) -> str:
        """The completion's text."""
        return "".join(self.tokens)


def last_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last message, "" where it has none."""
    content = messages[-1].get("content") if messages else ""
    return content if isinstance(content, str) else json.dumps(content or "")


def messages_tag(messages: list[dict[str, Any]]) -> str:
    """Eight hex digits that begin every answer to `messages`."""
    plain = [[message.get("role"), message.get("content")] for message in messages]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def answers_messages(messages: list[dict[str, Any]], completion: str) -> bool:
    """Whether `completion` was made for these messages and no others."""
    return completion.startswith(f"[{messages_tag(messages)}]")


def scripted_answer(
    messages: list[dict[str, Any]], *, seed: int = 0, index: int = 0, max_tokens: int | None = None
) -> ScriptedAnswer:
    """Choice `index` of the answer to `messages`; other seeds give other words after the same tag."""
    text = last_text(messages)
    if "<<refuse>>" in text:
        return ScriptedAnswer((), "stop", refusal="I can't help with that.")
    if "<<empty>>" in text:
        return ScriptedAnswer((), "stop")
    tag = messages_tag(messages)
    digest = hashlib.sha256(f"{tag}:{seed}:{index}".encode()).digest()
    count = _LONG if "<<long>>" in text else 3 + digest[0] % 22
    words = (_WORDS[digest[1 + place % 31] % len(_WORDS)] for place in range(count))
    tokens = (f"[{tag}]", *(f" {word}" for word in words))
    if max_tokens is not None and len(tokens) > max_tokens:
        return ScriptedAnswer(tokens[:max_tokens], "length")
    return ScriptedAnswer(tokens, "content_filter" if "<<filter>>" in text else "stop")


def count_prompt_tokens(messages: list[dict[str, Any]]) -> int:
    """Words of all messages, and three for each message's header."""
    return sum(3 + len(str(message.get("content") or "").split()) for message in messages)


def logprob_entries(tokens: tuple[str, ...], num_logprobs: int) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`: rank r has probability 2^-(r+1), and the sampled token has rank 0."""
    return [
        {
            **_entry(token, 0),
            "top_logprobs": [
                _entry(token if rank == 0 else f" alt{rank}", rank) for rank in range(num_logprobs)
            ],
        }
        for token in tokens
    ]


def _entry(token: str, rank: int) -> dict[str, Any]:
    return {"token": token, "logprob": -_LOG_2 * (rank + 1), "bytes": list(token.encode())}


def schema_instance(schema: dict[str, Any]) -> Any:
    """A value that satisfies a plain JSON Schema: const, enum, object, array, scalar, anyOf and its kin."""
    for choices in ("anyOf", "oneOf", "allOf"):
        if choices in schema:
            return schema_instance(schema[choices][0])
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        return {name: schema_instance(inner) for name, inner in properties.items()}
    if kind == "array":
        return [schema_instance(schema.get("items", {"type": "string"}))] * int(schema.get("minItems", 1))
    return {"string": "text", "number": 1.5, "integer": 1, "boolean": True, "null": None}[kind]
