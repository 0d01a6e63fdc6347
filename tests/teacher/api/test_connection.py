"""What is said where the endpoint can't be reached: proxies of the environment, certificates (I45)."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from raystill.teacher.api.address import Address, describe_proxy
from raystill.teacher.api.client import Answered, ApiClient
from raystill.teacher.api.outcomes import Failure

REMOTE = Address("http://api.example.com/v1", "api.example.com/v1", False)


async def send(address: Address) -> Answered | Failure:
    async with ApiClient(address, None, timeout_s=60.0, connections=1, checks_ids=False) as client:
        return await client.send("0" * 32, b"{}")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_proxy_of_the_environment_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """I45."""
    monkeypatch.setenv("http_proxy", "http://user:secretword@127.0.0.1:9")
    outcome = asyncio.run(send(REMOTE))
    assert isinstance(outcome, Failure)
    assert (outcome.action, outcome.code) == ("retry", "connection")
    assert "through the proxy http://***@127.0.0.1:9 (HTTP_PROXY)" in outcome.message
    assert "secretword" not in outcome.message
    assert "ConnectionRefusedError" in outcome.message


def test_local_endpoints_and_exceptions_go_through_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert describe_proxy(REMOTE)
    assert describe_proxy(Address("http://127.0.0.1:8000/v1", "localhost/v1", True)) == ""
    monkeypatch.setenv("no_proxy", "example.com")
    assert describe_proxy(REMOTE) == ""
    assert describe_proxy(Address("https://other.org/v1", "other.org/v1", False)) == ""


def test_a_bad_certificate_stops_the_run_in_plain_words(tmp_path: Path) -> None:
    """I45."""
    certificate, key = make_certificate(tmp_path)
    outcome = asyncio.run(with_server(certificate, key, send))
    assert isinstance(outcome, Failure)
    assert (outcome.action, outcome.code) == ("abort", "tls")
    assert "the endpoint's certificate is refused" in outcome.message
    assert "self-signed" in outcome.message.replace("self signed", "self-signed")
    assert "clock and certificates" in outcome.fix


async def with_server(
    certificate: Path, key: Path, ask: Callable[[Address], Awaitable[Answered | Failure]]
) -> Answered | Failure:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        return await ask(Address(f"https://127.0.0.1:{port}/v1", "localhost/v1", True))
    finally:
        await runner.cleanup()


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signed itself and ended a year ago, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=30))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, key_file = directory / "certificate.pem", directory / "key.pem"
    certificate.write_bytes(built.public_bytes(forms.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    )
    return certificate, key_file
