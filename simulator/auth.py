"""Who asks: API keys, signatures over the bytes as received, timestamps.

A REST request signs its query and body, joined without a separator and without the signature; a
WS API request signs its parameters sorted by name, `k=v` joined by `&`, values as their JSON text.
HMAC-SHA256 in hexadecimal, Ed25519 and RSA (PKCS #1 v1.5, SHA-256) in base64.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from simulator.endpoints import ApiError
from simulator.exchange.orders import Account, Key

AHEAD_MS = 1000  # how far a timestamp may lie in the future
_WINDOW = 5000.0
_WINDOW_MOST = 60_000
_MICROSECONDS_FROM = 10**14
_RECV_WINDOW = re.compile(r"^[0-9]{1,20}(\.[0-9]{1,3})?$")
_DIGITS = re.compile(r"^[0-9]{1,20}$")
_KEY = re.compile(r"^[A-Za-z0-9]{1,128}$")


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's account and key, and how long it may still be executed."""

    account: Account
    key: Key
    timestamp_ms: float
    window_ms: float

    def check_age(self, now_ms: float) -> None:
        """Raises: ApiError -1021 when the request is too old now, or from the future."""
        if self.timestamp_ms >= now_ms + AHEAD_MS:
            raise ApiError(
                400, -1021, "Timestamp for this request was 1000ms ahead of the server's time."
            )
        if now_ms - self.timestamp_ms > self.window_ms:
            raise ApiError(400, -1021, "Timestamp for this request is outside of the recvWindow.")


def load_public_key(pem: str) -> Ed25519PublicKey | RSAPublicKey:
    """Raises: ValueError when it is no Ed25519 or RSA public key in PEM form."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("no public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey | RSAPublicKey):
        raise ValueError("a public key must be Ed25519 or RSA")
    return key


def is_ed25519(key: Key) -> bool:
    return bool(key.public_key) and isinstance(_cached_key(key.public_key), Ed25519PublicKey)


_cached_key = lru_cache(maxsize=64)(load_public_key)


def verifies(key: Key, payload: bytes, signature: str) -> bool:
    """Whether the signature is the key's over these bytes."""
    if not key.public_key:
        wanted = hmac.new(key.secret.encode(), payload, hashlib.sha256).hexdigest()
        return hmac.compare_digest(wanted.encode(), signature.lower().encode())
    try:
        raw = base64.b64decode(signature, validate=True)
    except binascii.Error:
        return False
    public = _cached_key(key.public_key)
    try:
        if isinstance(public, RSAPublicKey):
            public.verify(raw, payload, padding.PKCS1v15(), hashes.SHA256())
        else:
            public.verify(raw, payload)
    except InvalidSignature:
        return False
    return True


def find_key(keys: Mapping[str, Account], name: str | None) -> tuple[Account, Key]:
    """Raises: ApiError when there is no such key."""
    if name is None or not _KEY.match(name):
        raise ApiError(401, -2014, "API-key format invalid.")
    account = keys.get(name)
    if account is None or not account.keys[name].is_active:
        raise ApiError(401, -2015, "Invalid API-key, IP, or permissions for action.")
    return account, account.keys[name]


def check_window(
    account: Account, key: Key, timestamp: str | None, window: str | None, now_ms: float
) -> Caller:
    """The caller, once the times of the request are found good.

    Raises: ApiError.
    """
    if not timestamp:
        raise ApiError(
            400,
            -1102,
            "Mandatory parameter 'timestamp' was not sent, was empty/null, or malformed.",
        )
    if not _DIGITS.match(timestamp):
        raise ApiError(
            400,
            -1100,
            "Illegal characters found in parameter 'timestamp'; legal range is '^[0-9]{1,20}$'.",
        )
    stamp = float(timestamp)
    if stamp >= _MICROSECONDS_FROM:
        stamp /= 1000
    allowed = _WINDOW
    if window:
        if not _RECV_WINDOW.match(window):
            raise ApiError(
                400,
                -1100,
                "Illegal characters found in parameter 'recvWindow'; legal range is "
                "'^[0-9]{1,20}(\\.[0-9]{1,3})?$'.",
            )
        allowed = float(window)
        if allowed > _WINDOW_MOST:
            raise ApiError(400, -1131, "recvWindow must be less than 60000.")
    caller = Caller(account, key, stamp, allowed)
    caller.check_age(now_ms)
    return caller


def without_signature(raw: str) -> tuple[str, str | None]:
    """(the text without its `signature=`, that signature, still encoded)."""
    if "signature=" not in raw:
        return raw, None
    kept, found = [], None
    for part in raw.split("&"):
        if part.startswith("signature="):
            found = part[len("signature=") :]
        else:
            kept.append(part)
    return "&".join(kept), found


def rest_parameters(query: str, body: str) -> dict[str, str]:
    """Query and form body as one; a name in both is the query's."""
    given = dict(parse_qsl(body, keep_blank_values=True)) if body else {}
    given.update(parse_qsl(query, keep_blank_values=True))
    return given


def check_repeats(query: str, body: str = "") -> None:
    """Raises: ApiError -1101 when one of the two names a parameter twice."""
    for part in (query, body):
        names = [name for name, _ in parse_qsl(part, keep_blank_values=True)]
        if len(set(names)) != len(names):
            raise ApiError(400, -1101, "Duplicate values for a parameter detected.")


def rest_payload(query: str, body: str) -> tuple[bytes, str | None]:
    """(the bytes that were signed, the signature as sent).

    Raises: ApiError -1022 when something is not percent-encoded.
    """
    bare_query, in_query = without_signature(query)
    bare_body, in_body = without_signature(body)
    if not (bare_query.isascii() and bare_body.isascii()):
        raise ApiError(400, -1022, "Signature for this request is not valid.")
    return (bare_query + bare_body).encode(), in_query if in_query is not None else in_body


def ws_payload(params: Mapping[str, str]) -> bytes:
    """The text that a WS API request signs; params as their JSON text, without the signature."""
    return "&".join(f"{k}={v}" for k, v in sorted(params.items()) if k != "signature").encode()
