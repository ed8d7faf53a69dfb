"""The files of the page, read once at start, compressed once, and known by what is in them."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    compressed: bytes
    kind: str
    etag: str


def read_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """By their path in the folder: `app.js`, `vendor/lightweight-charts.mjs`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = Asset(
                content=content,
                compressed=gzip.compress(content, mtime=0),
                kind=_TYPES[path.suffix],
                etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            )
    return found
