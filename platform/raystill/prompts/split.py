"""Which prompts are held out for evaluation: a pure function of content and seed.

The unit is the text of the user's turns, with whitespace and letter case folded: prompts that differ only
in their system message, spacing or case always fall on the same side, so no evaluation prompt is trained on
under another system message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from raystill.errors import ConfigError
from raystill.text.prompt_row import Split

Messages = Sequence[dict[str, str]]


def user_text_key(messages: Messages) -> str:
    """What the user says, folded: equal keys are never split."""
    said = (message["content"] for message in messages if message["role"] == "user")
    return "\0".join(" ".join(text.split()).casefold() for text in said)


def compute_splits(
    conversations: Sequence[Messages], seed: int, eval_size: int | None, eval_fraction: float
) -> list[Split]:
    """The side of every conversation, in order.

    Without `eval_size`, a group is held out if its hash falls below `eval_fraction`: a prompt's side depends
    on nothing but itself and the seed, so it never changes when others are added or removed (but of two or
    more groups, at least one is held out and one trained on). With `eval_size`, groups are held out in the
    order of their hashes as long as they fit, so at most that many prompts are; raises ConfigError if
    nothing would be left to train on.
    """
    keys = [user_text_key(messages) for messages in conversations]
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    ranked = sorted((_rank(key, seed), key) for key in sizes)
    if eval_size is None:
        below = sum(rank < eval_fraction for rank, _ in ranked)
        held_out = {key for _, key in ranked[: min(max(below, 1), len(ranked) - 1)]}
    else:
        held_out = _take(ranked, sizes, eval_size)
    if len(held_out) == len(sizes):
        raise ConfigError(
            f"all {len(keys)} prompts would be held out for evaluation",
            where="prompts.eval_size",
            fix="hold out fewer, or add prompts",
        )
    return ["eval" if key in held_out else "train" for key in keys]


def _take(ranked: list[tuple[float, str]], sizes: dict[str, int], eval_size: int) -> set[str]:
    held_out: set[str] = set()
    left = eval_size
    for _, key in ranked:
        if left == 0:
            break
        if sizes[key] <= left:
            held_out.add(key)
            left -= sizes[key]
    return held_out


def _rank(key: str, seed: int) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
