"""Features of an image set, extracted once: decoded ahead, corrupted in between, kept in checksummed shards."""

import io
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monoeval import progress
from monoeval.backbones import records
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import Backbone
from monoeval.backbones.preprocess import Preprocess
from monoeval.data.decode import naming_all_damaged
from monoeval.data.images import Image, ImageSet, Transform
from monoeval.errors import MonoevalError
from monoeval.files import atomic, cache_dir, cannot_write, locked

SHARD_ROWS = 2048
SHARD_BYTES = 16 << 20
LARGEST_HALF = 6e4
BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
AHEAD = 4
"""Batches that are decoded and prepared while one is in the network."""

log = logging.getLogger("monoeval")

_VERIFIED: set[tuple[Path, int, int]] = set()
"""Shards whose checksum this process has found right: every group of a run asks for the same ones."""


def extract(
    backbone: Backbone, identity_key: str, images: ImageSet, transforms: Sequence[Transform | None]
) -> list[FeatureSet]:
    """Features of `images` under each of `transforms` (None: as they are), in the order asked for.

    One pass over the images serves all transforms. What is in the cache is not made again; an extraction that
    was cut short goes on after its last whole shard, and a damaged shard is made again with a warning. Batches
    never cross shards, so that a resumed extraction gives the bits of an undisturbed one.
    Raises MonoevalError for features that are not finite, and where the cache cannot be written.
    """
    _remember(backbone, identity_key)
    entries: dict[str, _Entry] = {}
    for transform in transforms:
        entry = _Entry.of(backbone, identity_key, images, transform)
        entries.setdefault(entry.key, entry)
    with ExitStack() as locks:
        for _, entry in sorted(entries.items()):  # in one order, so that two processes never wait for each other
            if not entry.whole():
                locks.enter_context(locked(entry.folder))
                entry.whole()  # another process may have made it meanwhile
        _fill(backbone, images, list(entries.values()))
    return [entries[_Entry.of(backbone, identity_key, images, t).key].features() for t in transforms]


@dataclass
class _Entry:
    """One `FeatureSet` in the making."""

    key: str
    folder: Path
    transform: Transform | None
    rows: int
    """Rows a shard."""
    n: int
    about: dict[str, object]
    done: dict[int, Path]
    """The shards that are whole."""
    fingerprint: str
    """The backbone's."""

    @classmethod
    def of(cls, backbone: Backbone, identity_key: str, images: ImageSet, transform: Transform | None) -> "_Entry":
        made = records.features_key(
            identity_key,
            backbone.fingerprint,
            backbone.precision,
            backbone.preprocess,
            images.fingerprint,
            transform,
        )
        rows = max(1, min(SHARD_ROWS, SHARD_BYTES // (2 * backbone.width)))
        change = ""
        if transform:
            # a view has no severity: its seed tells it from the others
            number = transform.seed if transform.stage == "original" else transform.severity
            change = f" under {transform.name} {number:g}"
        about: dict[str, object] = {
            "what": f"{len(images)} × {backbone.width} features of {images.name}{change} by {backbone.name}",
            "backbone": backbone.name,
            "data": images.name,
            "transform": transform.model_dump(mode="json") if transform else None,
            "n": len(images),
            "width": backbone.width,
            "shards": max(1, -(-len(images) // rows)),
        }
        folder = cache_dir() / "features" / made
        return cls(made, folder, transform, rows, len(images), about, {}, backbone.fingerprint)

    @property
    def shards(self) -> range:
        return range(max(1, -(-self.n // self.rows)))

    def slice(self, shard: int) -> range:
        return range(shard * self.rows, min(self.n, (shard + 1) * self.rows))

    def whole(self) -> bool:
        """Look at the shards on disk and keep those whose checksum is right; whether all are there."""
        self.done = {}
        for shard, path in records.shards(self.folder).items():
            if records.checksum(path.read_bytes()) == path.stem.partition("-")[2]:
                self.done[shard] = path
            else:
                log.warning("A shard of %s is damaged and is made again: %s.", self.about["what"], path.name)
                _discard(path)
        return len(self.done) == len(self.shards)

    def write(self, shard: int, features: NDArray[np.floating]) -> None:
        stream = io.BytesIO()
        np.save(stream, features, allow_pickle=False)
        path = self.folder / f"{shard:05d}-{records.checksum(stream.getvalue())}.npy"
        with atomic(path) as temporary:
            temporary.write_bytes(stream.getvalue())
        self.done[shard] = path

    def describe(self) -> None:
        path = self.folder / "entry.json"
        if not path.exists():
            with atomic(path) as temporary:
                created = datetime.now(UTC).isoformat(timespec="seconds")
                temporary.write_text(json.dumps({**self.about, "created": created}), encoding="utf-8")

    def features(self) -> FeatureSet:
        try:
            os.utime(self.folder / "entry.json")  # `cache ls` and trimming go by when an entry was last used
        except OSError:
            log.debug("The cache is read-only.")
        shards = tuple(self.done[shard] for shard in self.shards)
        return FeatureSet(self.key, shards, str(self.about["backbone"]), self.fingerprint)


def _fill(backbone: Backbone, images: ImageSet, entries: list[_Entry]) -> None:
    """Make every missing shard, shard after shard, for all entries at once."""
    missing = {s: [e for e in entries if s not in e.done] for s in sorted({s for e in entries for s in e.shards})}
    missing = {shard: some for shard, some in missing.items() if some}
    if not missing:
        return
    for entry in {e.key: e for some in missing.values() for e in some}.values():
        entry.describe()
    total = sum(len(entry.slice(shard)) for shard, some in missing.items() for entry in some)
    workers = min(8, os.cpu_count() or 1)
    with (
        naming_all_damaged(images),
        progress.bar(f"Extracting {backbone.name}", total, "images") as advance,
        ThreadPoolExecutor(workers, thread_name_prefix="monoeval-decode") as pool,
    ):
        parts: dict[str, list[Tensor]] = {entry.key: [] for entry in entries}
        try:
            for shard, entry, last, batch in _ahead(pool, backbone, images, missing):
                parts[entry.key].append(_forward(backbone, batch))
                advance(len(batch))
                if last:
                    entry.write(shard, _joined(parts[entry.key], backbone))
                    parts[entry.key] = []
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ahead(
    pool: ThreadPoolExecutor, backbone: Backbone, images: ImageSet, missing: dict[int, list[_Entry]]
) -> Iterator[tuple[int, _Entry, bool, Tensor]]:
    """Prepared batches (shard, entry, whether the shard ends, [B, 3, S, S]), a few ahead of the network.

    An image is decoded once for all entries, and resized once for all but random views. A batch waits, in the
    pool, for its images; they were handed to the pool before it, so it never waits for work behind it.
    """
    size = BATCH.get(backbone.device.type, 32)
    waiting: deque[tuple[int, _Entry, bool, Future[Tensor]]] = deque()

    def first() -> tuple[int, _Entry, bool, Tensor]:
        shard, entry, last, future = waiting.popleft()
        return shard, entry, last, future.result()

    for shard, entries in missing.items():
        rows = entries[0].slice(shard)
        stages = {_stage(entry.transform) for entry in entries}
        for start in range(0, max(1, len(rows)), size):
            chosen = rows[start : start + size]
            decoded = [pool.submit(_decode, backbone, images, row, stages) for row in chosen]
            ids = images.ids[rows.start + start : rows.start + start + len(chosen)]
            for entry in entries:
                future = pool.submit(_prepare, backbone, decoded, ids, entry.transform)
                waiting.append((shard, entry, start + size >= len(rows), future))
                if len(waiting) > AHEAD:
                    yield first()
    while waiting:
        yield first()


def _stage(transform: Transform | None) -> str:
    """What a transform is made from: the image as it was read, or the square that preprocessing makes of it."""
    return "original" if transform is not None and transform.stage == "original" else "square"


def _decode(backbone: Backbone, images: ImageSet, row: int, stages: set[str]) -> dict[str, Image]:
    original = images.read(row)
    square = partial(backbone.preprocess.image, cropped=images.cropped)
    return {stage: original if stage == "original" else square(original) for stage in stages}


def _prepare(
    backbone: Backbone,
    decoded: list[Future[dict[str, Image]]],
    ids: NDArray[np.str_],
    transform: Transform | None,
) -> Tensor:
    from monoeval.data.transforms import view

    size = backbone.preprocess.image_size
    stage = _stage(transform)
    given = [future.result()[stage] for future in decoded]
    if transform is not None and stage == "original":
        parts = (view(image, str(name), transform) for image, name in zip(given, ids, strict=True))
        given = [backbone.preprocess.squeezed(part) for part in parts]
    pixels = np.stack(given) if given else np.empty((0, size, size, 3), np.uint8)
    return normalised(backbone.preprocess, pixels, ids, None if stage == "original" else transform)


def normalised(
    preprocess: Preprocess, squares: NDArray[np.uint8], ids: NDArray[np.str_], transform: Transform | None
) -> Tensor:
    """float32 [B, 3, S, S] of uint8 [B, S, S, 3], named by `ids` [B], under a corruption or noise."""
    from monoeval.data.corruptions import corrupt
    from monoeval.data.transforms import add_noise

    if transform is None:
        return preprocess.tensor(squares)
    if transform.stage == "image":
        return preprocess.tensor(corrupt(squares, ids, transform))
    return torch.from_numpy(add_noise(preprocess.tensor(squares).numpy(), ids, transform))


def _forward(backbone: Backbone, batch: Tensor) -> Tensor:
    """Features on the CPU; a batch that a GPU has no room for is halved until it fits."""
    if len(batch) == 0:
        return torch.empty(0, backbone.width)
    try:
        return backbone(batch).cpu()
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise MonoevalError(f"{backbone.device} has no room for one image: choose --device cpu.") from error
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return torch.cat([_forward(backbone, batch[:half]), _forward(backbone, batch[half:])])


def _joined(parts: list[Tensor], backbone: Backbone) -> NDArray[np.floating]:
    """The rows of a shard as fp16, or as fp32 where fp16 would overflow."""
    features = torch.cat(parts).numpy()
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise MonoevalError(
            f"{backbone.name} gives features that are not finite for {bad} of {len(features)} images: "
            "try --precision fp32, and check its weights."
        )
    return features if np.abs(features).max(initial=0) > LARGEST_HALF else features.astype(np.float16)


def _remember(backbone: Backbone, identity_key: str) -> None:
    """Keep what a plan needs to find these features without loading the model."""
    known = records.read(identity_key).get("loaded")
    facts = {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "precision": backbone.precision,
        "preprocess": backbone.preprocess.model_dump(mode="json"),
    }
    loaded = {**(known if isinstance(known, dict) else {}), backbone.precision: facts}
    records.update(identity_key, {"what": f"what is known of {backbone.name}", "loaded": loaded})


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
