"""Features on disk: shards of rows, memory-mapped, so that a set may be larger than memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monoeval.data.images import Ints


@dataclass(frozen=True)
class FeatureSet:
    """Features [N, D] of one image set under one transform, as fp16 (or fp32) `.npy` shards in row order."""

    key: str
    shards: tuple[Path, ...]
    backbone: str = ""
    """The resolved name of what made them; empty where that is not known."""
    fingerprint: str = ""
    """The backbone's: `load.Backbone.fingerprint`."""

    @cached_property
    def _arrays(self) -> list[NDArray[np.floating]]:
        return [_mapped(path) for path in self.shards]

    @cached_property
    def _starts(self) -> Ints:
        return np.cumsum([0, *(len(a) for a in self._arrays)])

    @property
    def n(self) -> int:
        return int(self._starts[-1])

    @property
    def width(self) -> int:
        return int(self._arrays[0].shape[-1])

    def load(self, rows: Ints | None = None) -> Tensor:
        """`rows` [n] (all where None) as float32 [n, D], in the order asked for."""
        if rows is None:
            return torch.from_numpy(np.concatenate([np.asarray(a, dtype=np.float32) for a in self._arrays]))
        rows = np.asarray(rows, dtype=np.int64)
        out_nd = np.empty((len(rows), self.width), dtype=np.float32)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            out_nd[here] = self._arrays[shard][rows[here] - self._starts[shard]]
        return torch.from_numpy(out_nd)

    def chunks(self, rows: Ints | None = None, size: int = 4096) -> Iterator[Tensor]:
        """`rows` in order, as float32 [at most size, D]."""
        order = np.arange(self.n) if rows is None else np.asarray(rows, dtype=np.int64)
        for start in range(0, len(order), size):
            yield self.load(order[start : start + size])


def _mapped(path: Path) -> NDArray[np.floating]:
    """The array of a `.npy` file, mapped to be read.

    Maps of numpy's keep their file open, and a set has more shards than many systems let a process open files:
    626 for ImageNet, and as many for each view.
    """
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    dtype = torch.from_numpy(np.empty(0, mapped.dtype)).dtype
    first = mapped.offset // mapped.itemsize
    flat = torch.from_file(str(path), shared=False, size=first + mapped.size, dtype=dtype)
    order: Literal["C", "F"] = "C" if mapped.flags.c_contiguous else "F"
    shard: NDArray[np.floating] = flat[first:].numpy().reshape(mapped.shape, order=order)
    shard.flags.writeable = False
    return shard
