"""Content keys: two things share a key exactly when everything that decides their value is equal."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel

Keyable = object  # str, int, float, bool, None, a pydantic model, or mappings and lists of these


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be part of a key")


def key(value: Keyable) -> str:
    """Hash `value` to 20 hexadecimal digits (80 bits); field order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def file_key(path: Path) -> str:
    """Hash a file's bytes to 20 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=10)).hexdigest()


def draw_seed(*parts: str | int | float) -> int:
    """A 63-bit seed that depends on `parts` alone, for draws that must not share a stream."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
