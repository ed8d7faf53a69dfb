"""The bus over TLS, by the address alone. The wheel's server has no TLS: a proxy ends it."""

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.bus import Bus, Source
from shared.config import load
from shared.errors import Unavailable
from shared.streams import KLINE
from tests.valkey import Server

_KLINES = Source(KLINE, "BTCUSDT", "1m")


def _certificates(folder: Path, host: str) -> tuple[Path, Path]:
    """(authority, server's certificate with its key), as PEM files."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, key: ec.EllipticCurvePublicKey, issuer: str) -> x509.CertificateBuilder:
        def of(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        return (
            x509.CertificateBuilder()
            .subject_name(of(name))
            .issuer_name(of(issuer))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    authority, own = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    ca = build("ca", authority.public_key(), "ca").add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    server = build("server", own.public_key(), "ca").add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(ca.sign(authority, hashes.SHA256()).public_bytes(pem))
    private = own.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(
        server.sign(authority, hashes.SHA256()).public_bytes(pem) + private
    )
    return folder / "ca.crt", folder / "server.pem"


@contextlib.asynccontextmanager
async def _ending_tls(server: Server, certificate: Path) -> AsyncIterator[int]:
    """Port of a TLS end before the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    running: set[asyncio.Task[None] | None] = set()
    proxy = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        await asyncio.gather(*(task for task in running if task is not None))


async def test_the_bus_over_tls_with_an_authority_of_its_own(
    tmp_path: Path, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate = _certificates(tmp_path / "own", "127.0.0.1")
    async with _ending_tls(valkey, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}"
        monkeypatch.setenv("ITB_REDIS_URL", url)
        async with Bus.session(load().bus_url, service="predictor") as bus:
            assert await bus.last_id(_KLINES) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9"])
async def test_a_server_that_is_not_the_one_is_refused(
    tmp_path: Path, valkey: Server, host: str
) -> None:
    """A certificate of somebody else's authority, and one for another address."""
    own, certificate = _certificates(tmp_path / "own", host)
    other, _ = _certificates(tmp_path / "other", host)
    authority = other if host == "127.0.0.1" else own
    async with _ending_tls(valkey, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}"
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            async with Bus.session(url, service="predictor"):
                pass
