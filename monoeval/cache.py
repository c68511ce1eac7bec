"""What is kept between runs: listed, checked, and thrown away, without torch."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from monoeval.backbones.records import checksum, shards
from monoeval.errors import unknown
from monoeval.files import cache_dir, cannot_write
from monoeval.keys import file_key

KINDS = ("features", "adapters", "backbones", "pretrained", "squares", "texts", "arrow", "labels", "fingerprints")


@dataclass(frozen=True)
class Entry:
    """One thing in the cache: a folder, or a file with what belongs to it."""

    kind: str
    key: str
    what: str
    """A sentence for people."""
    bytes: int
    used: datetime
    """When it was last used or written, in UTC."""


def entries() -> list[Entry]:
    """Everything in the cache, the largest kinds' folders first and each in the order of its use."""
    return [_entry(kind, key, paths) for kind in KINDS for key, paths in _found(kind)]


def verify() -> list[str]:
    """Recompute every checksum, remove what is damaged, and say in a sentence each what was removed.

    A damaged shard is removed alone, anything else as a whole; all of it is made again when next needed.
    """
    problems = []
    for kind in KINDS:
        for key, paths in _found(kind):
            for path in (file for p in paths for file in _files(p)):
                if path.exists() and _damaged(path):
                    problems.append(f"{kind}/{key}: {path.name} was damaged and is removed.")
                    _remove([path] if kind == "features" else paths)
    return problems


def clear(kind: str | None = None) -> int:
    """Delete the entries of `kind` (all kinds where None), and return the bytes that this freed.

    Raises UsageError for a kind that does not exist.
    """
    if kind is not None and kind not in KINDS:
        raise unknown("kind of cache entry", kind, KINDS)
    freed = 0
    for name in KINDS if kind is None else (kind,):
        folder = cache_dir() / name
        if folder.is_dir():
            freed += _size([folder])
            _remove([folder])
    return freed


def trim(max_bytes: int) -> int:
    """Delete what was used longest ago until at most `max_bytes` are left, and return the bytes freed."""
    found = {(kind, key): paths for kind in KINDS for key, paths in _found(kind)}
    oldest = sorted((_entry(kind, key, paths) for (kind, key), paths in found.items()), key=lambda e: e.used)
    total, freed = sum(e.bytes for e in oldest), 0
    for entry in oldest:
        if total - freed <= max_bytes:
            break
        _remove(found[entry.kind, entry.key])
        freed += entry.bytes
    return freed


def _found(kind: str) -> Iterator[tuple[str, list[Path]]]:
    """The entries of a kind by key: a folder, or files that share a stem; locks and temporary files are none."""
    grouped: dict[str, list[Path]] = {}
    folder = cache_dir() / kind
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.name.startswith(".") and path.suffix != ".lock":
            grouped.setdefault(path.stem, []).append(path)
    yield from grouped.items()


def _entry(kind: str, key: str, paths: list[Path]) -> Entry:
    times = [file.stat().st_mtime for path in paths for file in _files(path)] or [paths[0].stat().st_mtime]
    return Entry(kind, key, _what(kind, paths), _size(paths), datetime.fromtimestamp(max(times), UTC))


def _what(kind: str, paths: list[Path]) -> str:
    """The `what` of the entry's description, or the best that its fields say."""
    for path in (file for p in paths for file in _files(p) if file.suffix == ".json"):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(about, dict):
            continue
        if isinstance(about.get("spec"), dict):
            about = {**about["spec"], **about}
        if isinstance(about.get("what"), str):
            return str(about["what"])
        words = [str(about[name]) for name in ("method", "network", "objective") if name in about]
        data = about.get("data")
        name = data.get("name") if isinstance(data, dict) else data
        if words:
            return " ".join(words) + (f" on {name}" if name else "")
    return {
        "features": "features, not finished",
        "backbones": "what is known of a backbone",
        "pretrained": "a pretraining, not finished",
        "squares": "images to pretrain on, not finished",
        "arrow": "a parquet file's images, unpacked",
        "labels": "labels for instance noise, drawn from the images",
        "fingerprints": "checksums of a data folder's files",
    }.get(kind, "")


def _damaged(path: Path) -> bool:
    """Whether a file's bytes are not those that were written; files without a checksum must at least parse."""
    try:
        if path.suffix == ".npy":
            stated = path.stem.partition("-")[2]
            if path in shards(path.parent).values() and stated:
                return checksum(path.read_bytes()) != stated
            np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".json":
            about = json.loads(path.read_text(encoding="utf-8"))
            # as monoeval.bundles and monoeval.training.squares write it
            for name, suffix in (("tensors", ".safetensors"), ("pixels", ".npy")):
                if isinstance(about, dict) and isinstance(about.get(name), str):
                    return bool(about[name] != file_key(path.with_suffix(suffix)))
    except (OSError, ValueError):
        return True
    return False


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _size(paths: list[Path]) -> int:
    return sum(file.stat().st_size for path in paths for file in _files(path))


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if path.parent.parent == cache_dir():
                path.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
