"""How long a prompt is: in the teacher's own tokens, or from its bytes where nobody has the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from raystill.text.chat import Message

# English prose and JSON in common vocabularies; other scripts take more.
_TOKENS_PER_BYTE = 0.3
_TOKENS_PER_MESSAGE = 4


class TokenCounter(Protocol):
    """What the prompt table needs of a teacher; `ChatFormat` is one."""

    def render_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt as the teacher reads it. Raises DataError for messages that it can't take."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        ...


class ByteEstimate:
    """Counts for a closed teacher whose tokenizer isn't known."""

    def render_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The messages' texts; each gets room for its header."""
        header = "\n" * math.ceil(_TOKENS_PER_MESSAGE / _TOKENS_PER_BYTE)
        return "".join(f"{header}{message['content']}" for message in messages)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Three tokens for ten bytes."""
        return [math.ceil(len(text.encode("utf-8", "surrogatepass")) * _TOKENS_PER_BYTE) for text in texts]
