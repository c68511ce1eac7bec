"""The squares that a pretraining sees: decoded once, and held where there is room for them."""

import hashlib
import io
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monoeval import progress
from monoeval.backbones.preprocess import Preprocess
from monoeval.data.decode import naming_all_damaged
from monoeval.data.images import ImageSet, Ints
from monoeval.errors import MonoevalError
from monoeval.files import atomic, cache_dir, cannot_write, locked
from monoeval.hardware import free_bytes
from monoeval.keys import key

CROP_PCT = 1.0  # the whole central square: these images are small already
FORMAT = 1
ROWS = 32
"""Images that a thread decodes at a time."""
AHEAD = 3
"""Batches that are read from a file, or moved to a GPU, while one is in the network."""
READERS = 2

A = TypeVar("A")
B = TypeVar("B")

log = logging.getLogger("monoeval")


@dataclass(frozen=True)
class Squares:
    """The images of a set as a network takes them, uint8 [N, 3, S, S], and what their colours are."""

    held: Tensor | NDArray[np.uint8]
    """A tensor on `device`; or an array in memory beside it, or mapped from a file."""
    mean: list[float]
    """Of RGB in [0, 1], over all images."""
    std: list[float]
    """1 for a channel that is the same everywhere."""
    device: torch.device

    def __len__(self) -> int:
        return len(self.held)

    def take(self, rows: Tensor) -> Tensor:
        """The squares uint8 [n, 3, S, S], on the device, of int64 rows [n], which are on the CPU."""
        if isinstance(self.held, Tensor):
            return self.held[rows.to(self.device)]
        return self._moved(self._read(rows))

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [B] and their squares [B, 3, S, S], both on the device: `order` [n], `size` at a time.

        What is not held on the device is read a few batches ahead of the one that is asked for.
        """
        there = torch.split(order.to(self.device), size)
        if isinstance(self.held, Tensor):
            yield from ((rows, self.held[rows]) for rows in there)
            return
        reading = _ahead(self._read, torch.split(order, size), READERS, AHEAD)
        for rows, squares in zip(there, reading, strict=True):
            yield rows, self._moved(squares)

    def _read(self, rows: Tensor) -> Tensor:
        assert not isinstance(self.held, Tensor)
        # numpy copies without threads of its own, which would disturb those of torch
        return torch.from_numpy(self.held[rows.numpy()])

    def _moved(self, squares: Tensor) -> Tensor:
        if self.device.type == "cuda":  # from pinned memory, so that nothing waits for the last batch's work
            return squares.pin_memory().to(self.device, non_blocking=True)
        return squares.to(self.device)


def fit_into_memory(images: ImageSet, size: int, copies: int) -> bool:
    """Whether `copies` processes can hold the squares in half of the memory that is free."""
    return 2 * copies * len(images) * 3 * size * size <= free_bytes(torch.device("cpu"))


def squares_of(images: ImageSet, size: int, device: torch.device, *, on_disk: bool = False) -> Squares:
    """All `images` as squares of `size` pixels, decoded by threads.

    In memory, they are moved to the device where they take at most half of what a GPU has free. With `on_disk`
    they are written to a file in the cache, which stays there for the next pretraining on these images and is
    mapped: the system keeps of it what fits into memory.

    Raises MonoevalError where the cache has no room for the file.
    """
    if on_disk:
        return _from_file(images, size, device)
    shape = (len(images), 3, size, size)
    held, counts, start = np.empty(shape, np.uint8), _no_counts(), 0
    for chunk in _decoded(images, size):
        held[start : start + len(chunk)] = chunk
        counts += _counted(chunk)
        start += len(chunk)
    mean, std = _moments(counts)
    if device.type == "cuda" and 2 * held.nbytes > free_bytes(device):
        return Squares(held, mean, std, device)
    return Squares(torch.from_numpy(held).to(device), mean, std, device)


def _from_file(images: ImageSet, size: int, device: torch.device) -> Squares:
    """The file is named by everything that decides the squares, and described beside it once it is whole."""
    name = key(["squares", FORMAT, images.fingerprint, size, CROP_PCT])
    path = cache_dir() / "squares" / f"{name}.npy"
    shape = (len(images), 3, size, size)
    if (found := _opened(path, shape, device)) is not None:  # a read-only cache has no lock to give
        return found
    with locked(path):
        if (found := _opened(path, shape, device)) is not None:  # another process has made it meanwhile
            return found
        _remove_what_is_left_of(path)
        needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
        if needed > free:
            raise MonoevalError(
                f"The {len(images):,} images of {images.name} at {size} pixels do not fit into memory, and "
                f"{cache_dir()} has {free / 1e9:.1f} GB of the {needed / 1e9:.1f} GB that their file needs: free "
                "some room with `monoeval cache clear`, set MONOEVAL_CACHE to a folder on a larger disk, or give "
                "a smaller --limit or --image-size."
            )
        _write(path, shape, images, size)
        found = _opened(path, shape, device)
    assert found is not None
    return found


def _remove_what_is_left_of(path: Path) -> None:
    """Give back the room of a damaged file, and of files that killed processes had begun; only under the lock."""
    try:
        for left in (path, *path.parent.glob(f".{path.stem}.*.tmp")):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _opened(path: Path, shape: tuple[int, ...], device: torch.device) -> Squares | None:
    about = path.with_suffix(".json")
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
        # Only read: a mapping that could be written would have to fit into memory.
        held = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if held.shape != shape or held.dtype != np.uint8:
            raise ValueError
        found = Squares(held, list(facts["mean"]), list(facts["std"]), device)
    except (OSError, ValueError, KeyError, TypeError):
        if about.exists():
            log.warning("%s is damaged, and its images are decoded again.", path)
        return None
    try:
        os.utime(about)  # `cache ls` and trimming go by when an entry was last used
    except OSError:
        log.debug("The cache is read-only.")
    return found


def _write(path: Path, shape: tuple[int, ...], images: ImageSet, size: int) -> None:
    """Write from front to back: of a mapped file a full disk would end the process without a word."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    counts, checksum = _no_counts(), hashlib.blake2b(header.getvalue(), digest_size=10)  # as `file_key`
    with atomic(path) as temporary, temporary.open("wb") as stream:
        stream.write(header.getvalue())
        for chunk in _decoded(images, size):
            stream.write(chunk.data)
            checksum.update(chunk.data)
            counts += _counted(chunk)
    mean, std = _moments(counts)
    what = f"{len(images):,} images of {images.name} as squares of {size} pixels"
    with atomic(path.with_suffix(".json")) as temporary:
        facts = {"what": what, "mean": mean, "std": std, "pixels": checksum.hexdigest()}
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def prepared(images: ImageSet, rows: Ints, preprocess: Preprocess) -> Iterator[NDArray[np.uint8]]:
    """The squares uint8 [n, S, S, 3] of `rows` by `preprocess`, in their order and a few at a time, by threads."""
    workers = min(8, os.cpu_count() or 1)

    def decode(some: Ints) -> NDArray[np.uint8]:
        return np.stack([preprocess.image(images.read(int(row)), cropped=images.cropped) for row in some])

    parts = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    with naming_all_damaged(images):
        yield from _ahead(decode, parts, workers, 2 * workers)


def _decoded(images: ImageSet, size: int) -> Iterator[NDArray[np.uint8]]:
    """The squares uint8 [n, 3, S, S] of all images, in their order and a few at a time."""
    preprocess = Preprocess(image_size=size, crop_pct=CROP_PCT)
    with progress.bar(f"Decoding {images.name}", len(images), "images") as advance:
        for chunk in prepared(images, np.arange(len(images)), preprocess):
            yield np.ascontiguousarray(chunk.transpose(0, 3, 1, 2))
            advance(len(chunk))


def _ahead(function: Callable[[A], B], inputs: Iterable[A], workers: int, most: int) -> Iterator[B]:
    """What `function` gives for each of `inputs`, in their order, found by threads at most `most` ahead."""
    pool, waiting = ThreadPoolExecutor(workers, thread_name_prefix="monoeval-squares"), deque[Future[B]]()
    try:
        for value in inputs:
            waiting.append(pool.submit(function, value))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _no_counts() -> NDArray[np.int64]:
    return np.zeros((3, 256), np.int64)


def _counted(chunk: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel of uint8 [n, 3, S, S] has each level, [3, 256]."""
    return np.stack([np.bincount(chunk[:, c].ravel(), minlength=256) for c in range(3)])


def _moments(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, as floats in [0, 1], of levels [3, 256]; a flat channel has 1."""
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(axis=1) - mean**2, 0))
    return mean.tolist(), np.where(std > 1e-6, std, 1.0).tolist()
