"""Signatures, against Binance's published vectors and an independent verification."""

import base64
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from shared.errors import Usage
from shared.signing import Signer

SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
REST = (
    "symbol={}&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1"
    "&recvWindow=5000&timestamp=1499827319559"
)


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("LTCBTC", "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"),
        (
            "%EF%BC%91%EF%BC%92%EF%BC%93%EF%BC%94%EF%BC%95%EF%BC%96",
            "e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3",
        ),
    ],
)
def test_hmac_of_rest_is_the_published_one(symbol: str, expected: str) -> None:
    payload = REST.format(symbol)
    assert Signer(SECRET + "\n").signed(payload) == f"{payload}&signature={expected}"


def test_hmac_of_the_websocket_api_is_the_published_one() -> None:
    params = {
        "symbol": "BTCUSDT", "side": "SELL", "type": "LIMIT", "timeInForce": "GTC",
        "quantity": "0.01000000", "price": "52000.00", "recvWindow": 100,
        "timestamp": 1645423376532, "apiKey": KEY,
    }  # fmt: skip
    signed = Signer(SECRET).signed_params(params)
    expected = "aa1b5712c094bc4e57c05a1a5c1fd8d88dcd628338ea863fec7b88e59fe2db24"
    assert signed == {**params, "signature": expected}


def test_ed25519_signs_the_bytes_and_is_sent_percent_encoded() -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for count in range(20):  # base64 has +, / or = in nearly all of them
        payload = REST.format("LTCBTC") + str(count)
        head, _, tail = Signer(pem).signed(payload).rpartition("&signature=")
        assert head == payload
        assert not set(tail) & set("+/=")
        signature = base64.b64decode(dict(parse_qsl(f"signature={tail}"))["signature"])
        key.public_key().verify(signature, payload.encode())
    params = Signer(pem).signed_params({"b": 2, "a": "x"})
    key.public_key().verify(base64.b64decode(str(params["signature"])), b"a=x&b=2")


def test_a_secret_that_cannot_sign_is_refused_without_being_shown() -> None:
    other = rsa.generate_private_key(65537, 2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    locked = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    broken = "-----BEGIN PRIVATE KEY-----\ncanary-body\n-----END PRIVATE KEY-----"
    for secret in ("", " \n", pem, locked.decode(), broken):
        with pytest.raises(Usage) as caught:
            Signer(secret)
        for line in secret.splitlines()[1:-1]:
            assert line not in str(caught.value)


def test_a_signer_does_not_show_its_secret() -> None:
    assert repr(Signer(SECRET)) == "Signer(HMAC-SHA256)"
    assert SECRET not in str(Signer(SECRET)) + repr(Signer(SECRET).kind)
