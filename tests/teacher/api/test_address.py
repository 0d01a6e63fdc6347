"""Addresses and keys: what is refused before anything is sent, and that no key is ever shown (I7-I9)."""

from __future__ import annotations

import pytest

from raystill.config.closed_teacher import ClosedEndpoint
from raystill.config.load import load_config
from raystill.errors import ConfigError
from raystill.teacher.api.address import parse_address, read_key


def endpoint(base_url: str = "https://api.example.com/v1", **keys: object) -> ClosedEndpoint:
    return ClosedEndpoint.model_validate({"base_url": base_url, **keys})


@pytest.mark.parametrize(
    ("base_url", "identity"),
    [
        ("https://api.example.com/v1/", "api.example.com/v1"),
        ("https://api.example.com:8443/v1", "api.example.com:8443/v1"),
        ("https://API.example.com:443/v1", "api.example.com/v1"),
        ("http://127.0.0.1:8000/v1", "localhost/v1"),
        ("http://localhost:9999/v1", "localhost/v1"),
        ("http://[::1]:8000/v1", "localhost/v1"),
    ],
)
def test_an_address_names_the_endpoint_whatever_its_spelling(base_url: str, identity: str) -> None:
    address = parse_address(endpoint(base_url))
    assert address.identity == identity
    assert address.chat_url.endswith("/v1/chat/completions")


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        ("api.example.com/v1", "write the scheme too: https://api.example.com/v1"),
        ("ftp://api.example.com/v1", "no http"),
        ("https:///v1", "no http"),
        ("https://api.example.com:port/v1", "no valid port"),
        ("https://user:secretword@api.example.com/v1", "credentials"),
        ("https://api.example.com/v1?key=abc", "a query"),
        ("http://api.example.com/v1", "plain text to api.example.com"),
    ],
)
def test_what_is_no_safe_address_is_refused_with_the_repair(base_url: str, message: str) -> None:
    """I9."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_address(endpoint(base_url))
    assert "teacher.closed.endpoint.base_url" in str(caught.value)
    assert "secretword" not in str(caught.value)


def test_plain_http_is_allowed_without_a_key_or_on_request() -> None:
    """I9."""
    assert parse_address(endpoint("http://box:8000/v1", api_key_env=None)).identity == "box:8000/v1"
    assert parse_address(endpoint("http://box:8000/v1", allow_http=True)).identity == "box:8000/v1"


def test_a_missing_key_is_named_by_its_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """I7."""
    monkeypatch.delenv("SOME_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="SOME_API_KEY is not set"):
        read_key(endpoint(api_key_env="SOME_API_KEY"))
    monkeypatch.setenv("SOME_API_KEY", "canary\nvalue")
    with pytest.raises(ConfigError) as caught:
        read_key(endpoint(api_key_env="SOME_API_KEY"))
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("SOME_API_KEY", " canary-value \n")
    assert read_key(endpoint(api_key_env="SOME_API_KEY")) == "canary-value"
    assert read_key(endpoint(api_key_env=None)) is None


def test_a_literal_key_in_the_configuration_is_refused_and_masked() -> None:
    """I8."""
    key = "sk-canarycanarycanary123"
    with pytest.raises(ConfigError, match="literal secret") as caught:
        load_config([], ["teacher.closed.model.name=m", f"teacher.closed.endpoint.api_key_env={key}"])
    assert key not in str(caught.value)
