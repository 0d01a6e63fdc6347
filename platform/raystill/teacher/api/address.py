"""Where the endpoint is, what it is called in the store, and the key that opens it.

The key is read from the environment of the process that sends requests, and leaves it only in a header.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from raystill.config.closed_teacher import ClosedEndpoint
from raystill.config.secret import masked
from raystill.errors import ConfigError

_BASE_URL = "teacher.closed.endpoint.base_url"
_KEY_ENV = "teacher.closed.endpoint.api_key_env"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A checked base URL. `identity` names the endpoint in the store: host, port and path, no scheme."""

    base_url: str
    identity: str
    is_local: bool

    @property
    def chat_url(self) -> str:
        """Where completions are asked for."""
        return f"{self.base_url}/chat/completions"


def describe_proxy(address: Address) -> str:
    """The proxy of the environment that requests go through, its credentials masked; "" where there is none.

    A local endpoint is always reached directly.
    """
    scheme = urlsplit(address.base_url).scheme
    host = urlsplit(address.base_url).hostname or ""
    proxy = getproxies().get(scheme)
    if address.is_local or not proxy or proxy_bypass(host):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    who = "***@" if parts.username or parts.password else ""
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{who}{parts.hostname}{port} ({scheme.upper()}_PROXY)"


def parse_address(endpoint: ClosedEndpoint) -> Address:
    """Check `base_url`. Raises ConfigError for one without scheme or host, with credentials or a query in it,
    and for plain http to another machine with a key.
    """
    shown = masked(endpoint.base_url)
    parts = urlsplit(endpoint.base_url.strip())
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            f"the address {shown} has no valid port", _BASE_URL, "write https://host:port/v1"
        ) from error
    if parts.scheme not in _DEFAULT_PORTS or not host:
        fix = f"write the scheme too: https://{shown}" if "://" not in shown else "write https://host/v1"
        raise ConfigError(f"the address {shown} is no http(s) URL", _BASE_URL, fix)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "the address carries credentials, a query or a fragment",
            _BASE_URL,
            f"write scheme, host and path only; the key comes from the variable that {_KEY_ENV} names",
        )
    is_local = _is_loopback(host)
    if parts.scheme == "http" and not is_local and endpoint.api_key_env and not endpoint.allow_http:
        raise ConfigError(
            f"the key would be sent in plain text to {host}",
            _BASE_URL,
            f"use https://, set {_KEY_ENV}: null if the endpoint wants no key, or allow it with "
            "teacher.closed.endpoint.allow_http: true",
        )
    path = parts.path.rstrip("/")
    place = f"[{host}]" if ":" in host else host
    with_port = f"{place}:{port}" if port and port != _DEFAULT_PORTS[parts.scheme] else place
    # The port of a server on this machine says nothing about who answers there.
    identity = f"localhost{path}" if is_local else f"{with_port}{path}"
    return Address(f"{parts.scheme}://{with_port}{path}", identity, is_local)


def read_key(endpoint: ClosedEndpoint) -> str | None:
    """The key, None where the endpoint wants none. Raises ConfigError naming the variable, never a value."""
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {endpoint.api_key_env} is not set",
            _KEY_ENV,
            f"export {endpoint.api_key_env}=... on every node before Ray starts there, or set {_KEY_ENV} to "
            "the variable that holds the key (null for an endpoint without keys)",
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the environment variable {endpoint.api_key_env} holds characters that no header can carry",
            _KEY_ENV,
            "copy the key again, without line breaks",
        )
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
