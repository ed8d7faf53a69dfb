"""Signatures of account requests: HMAC-SHA256, or Ed25519 where the secret is a private key (PEM).

REST signs the very bytes of query and body and appends the signature last; the WebSocket API signs
its parameters sorted by name (binance.md section 4).
"""

import base64
import hmac
from collections.abc import Callable, Mapping
from urllib.parse import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from shared.errors import Usage


class Signer:
    """Holds the secret; neither its repr nor its errors show it."""

    __slots__ = ("_sign", "kind")

    def __init__(self, secret: str) -> None:
        """secret: the secret key, or an unencrypted PEM file's text.

        Raises:
            Usage: it is empty, or a private key that is not Ed25519.
        """
        text = secret.strip()
        if not text:
            raise Usage("the API secret is empty")
        self.kind = "Ed25519" if text.startswith("-----BEGIN") else "HMAC-SHA256"
        self._sign = _ed25519(text) if self.kind == "Ed25519" else _hmac(text)

    def __repr__(self) -> str:
        return f"Signer({self.kind})"

    def signature(self, payload: bytes) -> str:
        """Hexadecimal (HMAC) or base64 (Ed25519)."""
        return self._sign(payload)

    def signed(self, payload: str) -> str:
        """REST: an encoded query or form with its signature at the end."""
        return f"{payload}&signature={quote(self._sign(payload.encode()), safe='')}"

    def signed_params(self, params: Mapping[str, str | int]) -> dict[str, str | int]:
        """WebSocket API: the parameters and their signature."""
        payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
        return {**params, "signature": self._sign(payload.encode())}


def _hmac(secret: str) -> Callable[[bytes], str]:
    key = secret.encode()
    return lambda payload: hmac.digest(key, payload, "sha256").hex()


def _ed25519(pem: str) -> Callable[[bytes], str]:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Usage(
            "the API secret looks like a private key, but is no unencrypted PEM; make one with: "
            "openssl genpkey -algorithm ed25519 -out secret.pem"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Usage(
            "the API secret is a private key, but not Ed25519, the only kind that is supported"
        )
    return lambda payload: base64.b64encode(key.sign(payload)).decode()
