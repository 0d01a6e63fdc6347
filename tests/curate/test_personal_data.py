"""Patterns: what they find, what they leave, and that redaction leaves the rest alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.curate.personal_data import find_personal_data, is_iban, is_luhn, redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Write to ann.lee+x@mail.example.org.", "Write to [EMAIL]."),
        ("Call +49 30 901820 or (415) 555-2671.", "Call [PHONE] or [PHONE]."),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [IBAN] please"),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("Card 4111 1111 1111 1111, thanks", "Card [CREDIT_CARD], thanks"),
        ("SSN 123-45-6789", "SSN [US_SSN]"),
        ("from 93.184.216.34:80", "from [IPV4]:80"),
        ("key sk-abcdefghijklmnopqrstuvwx1234", "key [API_KEY]"),
        ("AKIAIOSFODNN7EXAMPLE", "[API_KEY]"),
    ],
)
def test_found_and_redacted(text: str, redacted: str) -> None:
    assert redact(text, find_personal_data(text)) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "Version 1.2.3.4 runs on 127.0.0.1 and 192.168.0.7.",
        "4111 1111 1111 1112 is no card",
        "DE89 3704 0044 0532 0130 01 is no IBAN",
        "000-12-3456 and 666-12-3456 were never issued",
        "Add 415 and 555, then 2671: 3641. On 2024-05-17 at 10:30.",
        "3.14159265358979323846 and 1e-12",
        "a@b is no address, nor is @handle",
        "0000 0000 0000 0000",
    ],
)
def test_left_alone(text: str) -> None:
    assert find_personal_data(text) == []


def test_checks() -> None:
    assert is_luhn("79927398713") and not is_luhn("79927398710")
    assert is_iban("FR14 2004 1010 0505 0001 3M02 606") and not is_iban("FR1420041010050500013M02607")


@given(st.text(alphabet=st.sampled_from("ab @.+-0123456789x"), max_size=60))
def test_matches_are_ordered_and_never_overlap(text: str) -> None:
    matches = find_personal_data(text)
    assert all(left.end <= right.start for left, right in pairwise(matches))
    rest = "".join(
        text[end:start]
        for end, start in zip(
            [0, *(match.end for match in matches)],
            [*(match.start for match in matches), len(text)],
            strict=True,
        )
    )
    cleaned = redact(text, matches)
    for match in matches:
        cleaned = cleaned.replace(f"[{match.kind.upper()}]", "", 1)
    assert cleaned == rest
