"""Literal secrets: found, masked, and ordinary names left alone."""

from __future__ import annotations

import pytest

from raystill.config.secret import has_secret, masked

# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "sk-" + "proj-abcDEF123456789",
    "hf_" + "AbCdEfGhIjKlMnOp",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ghp_" + "abcdefghij0123456789ABCD",
    "AIza" + "SyA0123456789abcdefghijklmnopqrstuv",
    "xoxb-" + "1234567890-abcdef",
    "-----BEGIN RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["{}", "Bearer {}", "key={} more", '"{}"'])
def test_secrets_are_found_and_masked(secret: str, form: str) -> None:
    """I8."""
    text = form.format(secret)
    assert has_secret(text)
    assert secret not in masked(text)
    assert "***" in masked(text)
    assert not has_secret(masked(text))


def test_a_password_in_an_address() -> None:
    assert masked("https://me:hunter2@host/x") == "https://me:***@host/x"
    assert not has_secret("https://host/x")


@pytest.mark.parametrize(
    "text",
    [
        "stabilityai/stable-code-instruct-3b", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "sk-learn", "hf_model",
        "task-abcdefghijklmnop", "org/sk-something-long-enough", "expandable_segments:True", "ray://host:10001",
        "file:.logs/mlruns", "s3://bucket/key", "",
    ],
)  # fmt: skip
def test_names_are_no_secrets(text: str) -> None:
    assert not has_secret(text)
    assert masked(text) == text
