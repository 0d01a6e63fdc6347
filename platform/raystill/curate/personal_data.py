"""Personal data in texts, by patterns: no model, no lists of names, so neither complete nor free of error.

Checked numbers keep the errors down: card numbers by issuer, length and Luhn digit (ISO/IEC 7812-1), IBANs
by their remainder (ISO 13616, mod 97 = 1), social security numbers by the ranges that are never issued.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])(?!\.\d)")
# Visa, Mastercard, American Express, Diners Club, and Discover, JCB, Maestro, UnionPay.
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[068]\d{12}|(?:6\d|35)\d{14}|6\d{18}"
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_PHONE = re.compile(
    r"(?<![\w.+])(?:"
    r"\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"  # international, with its plus sign
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}"  # (415) 555-2671
    r"|\d{3}[.-]\d{3}[.-]\d{4}"  # 415-555-2671
    r")(?![\w-])"
)
_API_KEY = re.compile(
    r"(?<![\w-])(?:"
    r"sk-(?:[A-Za-z]+-)*[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic
    r"|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}"
    r"|AIza[0-9A-Za-z_-]{35}"  # Google
    r"|xox[abprs]-[0-9A-Za-z-]{10,}"  # Slack
    r"|hf_[A-Za-z0-9]{30,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JWT
    r")"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


@dataclass(frozen=True)
class Match:
    """A piece of text, characters `start` to `end`, that is personal data of `kind`."""

    kind: str
    start: int
    end: int


def find_personal_data(text: str) -> list[Match]:
    """Matches in order, none overlapping; where kinds compete, the more exact one wins."""
    taken: list[Match] = []
    for kind, pattern, is_real in _KINDS:
        for found in pattern.finditer(text):
            start, end = found.span()
            if is_real(found.group()) and all(end <= other.start or start >= other.end for other in taken):
                taken.append(Match(kind, start, end))
    return sorted(taken, key=lambda match: match.start)


def redact(text: str, matches: list[Match]) -> str:
    """`text` with every match replaced by its kind: `[EMAIL]`."""
    return "".join(_redacted_parts(text, matches))


def count_kinds(matches: list[Match]) -> Counter[str]:
    """Matches by kind."""
    return Counter(match.kind for match in matches)


def is_card(text: str) -> bool:
    """Whether `text` is a number that a card could have: issuer, length and check digit fit."""
    digits = "".join(char for char in text if char.isdigit())
    return _ISSUED.fullmatch(digits) is not None and is_luhn(digits)


def is_luhn(text: str) -> bool:
    """Whether the digits of `text` end in their Luhn check digit (ISO/IEC 7812-1) and aren't all equal."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    total = sum(digits[-1::-2]) + sum(doubled)
    return len(set(digits)) > 1 and total % 10 == 0


def is_iban(text: str) -> bool:
    """Whether `text` is an IBAN: 15 to 34 characters whose number has remainder 1 modulo 97 (ISO 13616)."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def _redacted_parts(text: str, matches: list[Match]) -> Iterator[str]:
    end = 0
    for match in matches:
        yield text[end : match.start]
        yield f"[{match.kind.upper()}]"
        end = match.end
    yield text[end:]


def _is_public_ipv4(text: str) -> bool:
    """Loopback, private and unspecified addresses, and version numbers such as 1.2.3.4, are nobody's."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and max(address.packed) > 9


def _is_phone(text: str) -> bool:
    return 8 <= sum(char.isdigit() for char in text) <= 15


def _always(text: str) -> bool:
    return True


# In the order of exactness.
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("api_key", _API_KEY, _always),
    ("email", _EMAIL, _always),
    ("iban", _IBAN, is_iban),
    ("credit_card", _CARD, is_card),
    ("us_ssn", _SSN, _always),
    ("ipv4", _IPV4, _is_public_ipv4),
    ("phone", _PHONE, _is_phone),
)
PERSONAL_DATA_KINDS: tuple[str, ...] = tuple(kind for kind, _, _ in _KINDS)
