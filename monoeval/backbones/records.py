"""What loading a backbone taught, kept in the cache so that a plan can tell what is extracted without torch."""

import hashlib
import json
import logging
from pathlib import Path

from monoeval.backbones.preprocess import Preprocess
from monoeval.data.corruptions import VERSION as CORRUPTIONS_VERSION
from monoeval.data.images import Transform
from monoeval.errors import MonoevalError
from monoeval.files import atomic, cache_dir
from monoeval.keys import key

SCHEMA = 1
"""Raised whenever the same images, weights and transform would give other features."""

log = logging.getLogger("monoeval")

Record = dict[str, object]


def record_path(identity_key: str) -> Path:
    """Where the record of a backbone with this identity lies."""
    return cache_dir() / "backbones" / f"{identity_key}.json"


def read(identity_key: str) -> Record:
    """What is known of a backbone; empty where nothing is, or where the record is damaged."""
    try:
        known = json.loads(record_path(identity_key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and known.get("schema") == SCHEMA else {}


def update(identity_key: str, fields: Record) -> None:
    """Merge `fields` into the record; nothing is written where it says so already.

    A cache that cannot be written is no failure here: a read-only one may still hold the features.
    """
    before = read(identity_key)
    after = {**before, **fields, "schema": SCHEMA}
    if after != before:
        try:
            with atomic(record_path(identity_key)) as path:
                path.write_text(json.dumps(after, indent=1, sort_keys=True), encoding="utf-8")
        except MonoevalError as error:
            log.debug("%s", error)


def features_key(
    identity_key: str,
    fingerprint: str,
    precision: str,
    preprocess: Preprocess,
    images_fingerprint: str,
    transform: Transform | None,
) -> str:
    """The content key of a `FeatureSet`: all that decides its values."""
    made_by = [CORRUPTIONS_VERSION] if transform is not None and transform.stage == "image" else []
    return key([SCHEMA, identity_key, fingerprint, precision, preprocess, images_fingerprint, transform, *made_by])


def cached(identity_key: str, images_fingerprint: str, transform: Transform | None = None) -> bool:
    """Whether these features are whole in the cache (shards counted, not read), told without torch.

    False for a backbone that was never loaded. A backbone that was used at both precisions counts at either.
    """
    known = read(identity_key)
    loaded = known.get("loaded")
    for facts in loaded.values() if isinstance(loaded, dict) else []:
        preprocess = Preprocess.model_validate(facts["preprocess"])
        made = features_key(
            identity_key, facts["fingerprint"], facts["precision"], preprocess, images_fingerprint, transform
        )
        if complete(cache_dir() / "features" / made):
            return True
    return False


def shards(folder: Path) -> dict[int, Path]:
    """Shard number → file, of an entry's folder; the name is `<number>-<checksum>.npy`."""
    return {int(path.name[:5]): path for path in sorted(folder.glob("[0-9]*-*.npy"))}


def complete(folder: Path) -> bool:
    """Whether the entry has every shard that its `entry.json` announces."""
    try:
        expected = json.loads((folder / "entry.json").read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(len(shards(folder)) == expected)


def checksum(data: bytes) -> str:
    """The 16 hexadecimal digits that a shard's name carries."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
