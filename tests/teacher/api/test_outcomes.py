"""The taxonomy of failures, Retry-After in both its forms, and backoff."""

from __future__ import annotations

import random
from email.utils import formatdate
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.teacher.api.outcomes import backoff_seconds, classify_status, parse_retry_after


@pytest.mark.parametrize(
    ("status", "code", "action", "reject_code"),
    [
        (429, "", "throttle", "rate_limited"),
        (429, "insufficient_quota", "abort", "insufficient_quota"),
        (500, "", "retry", "server_error"),
        (529, "", "retry", "server_error"),
        (408, "", "retry", "server_error"),
        (400, "", "reject", "bad_request"),
        (400, "context_length_exceeded", "reject", "prompt_too_long"),
        (400, "content_policy_violation", "reject", "content_filter"),
        (413, "", "reject", "prompt_too_long"),
        (422, "", "reject", "bad_request"),
        (401, "", "abort", "http_401"),
        (402, "", "abort", "http_402"),
        (403, "", "abort", "http_403"),
        (404, "model_not_found", "abort", "model_not_found"),
        (302, "", "abort", "redirect"),
    ],
)
def test_every_status_has_its_consequence(status: int, code: str, action: str, reject_code: str) -> None:
    failure = classify_status(status, code, "what the endpoint says", None)
    assert (failure.action, failure.code) == (action, reject_code)
    assert bool(failure.fix) == (action == "abort")


def test_what_the_endpoint_says_is_masked_and_cut() -> None:
    failure = classify_status(400, "", "bad sk-canarycanarycanary123 " + "x" * 1000, None)
    assert "canary" not in failure.message
    assert len(failure.message) < 400


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    """F5."""
    assert parse_retry_after("1.5") == 1.5
    assert parse_retry_after("-3") == 0.0
    assert parse_retry_after("86400") == 300.0
    assert 3.0 < (parse_retry_after(formatdate(time() + 5, usegmt=True)) or 0.0) <= 5.0
    for unreadable in (None, "soon", "nan", ""):
        assert parse_retry_after(unreadable) is None


@given(attempt=st.integers(1, 50), wish=st.none() | st.floats(0, 300), seed=st.integers())
def test_waits_are_bounded_and_never_shorter_than_what_was_asked_for(
    attempt: int, wish: float | None, seed: int
) -> None:
    """F5."""
    wait = backoff_seconds(attempt, wish, random.Random(seed))
    if wish is None:
        assert 0.0 <= wait <= 30.0
    else:
        assert wish <= wait <= wish * 1.1 + 0.05 + 1e-9
