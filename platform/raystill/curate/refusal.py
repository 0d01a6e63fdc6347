"""Completions that refuse. English only, and only at the beginning: a refusal that is quoted is no refusal.

The list is short on purpose: each phrase stands for a way of declining that models use, none for a topic. An
apology counts only together with what can't be done, so "I'm sorry to hear that" is kept.
"""

from __future__ import annotations

import re

from raystill.curate.candidate import Candidate, Drop
from raystill.curate.words import normalise

_LEAD = (
    r"(?:(?:i(?:'m| am) (?:very |really |so )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)"
    r"[,.;:!-]* (?:but )?)?"
)
_DECLINE = (
    r"i (?:can(?:'t|not| not)|could(?:n't| not)|won't|will not) "
    r"(?:help|assist|comply|fulfil|fulfill|do that|do this|provide|answer|continue|create|write|generate|"
    r"discuss|engage|support|share|offer|give|participate|complete)\b",
    r"i(?:'m| am) (?:not able|unable) to (?:help|assist|comply|fulfil|fulfill|provide|answer|continue|create|"
    r"write|generate|discuss|engage|support|share|offer|give|participate|complete)\b",
    r"i (?:must|have to|need to) (?:respectfully )?(?:decline|refuse)\b",
    r"i(?:'d| would) (?:prefer|rather) not (?:to )?\b",
    r"as an? (?:ai|artificial intelligence|large language model|language model)\b[^.!?]{0,80}"
    r"\b(?:can(?:'t|not| not)|unable|not able|don't|do not)\b",
    r"(?:it(?:'s| is)|this is|that(?:'s| is)) (?:against|not within) my "
    r"(?:programming|guidelines|policy|policies|capabilities)\b",
)
_REFUSAL = re.compile(rf"{_LEAD}(?:{'|'.join(_DECLINE)})")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'"})
_BEGINNING = 300


def check_refusal(row: Candidate) -> Drop | None:
    """Drops a completion whose first words decline to answer."""
    beginning = normalise(row.completion[:_BEGINNING].translate(_APOSTROPHES))
    found = _REFUSAL.match(beginning)
    return None if found is None else Drop("refusal", found.group())
