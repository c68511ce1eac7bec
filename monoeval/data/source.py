"""What a loader finds before splits are chosen: rows with raw labels, not yet class positions."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Image, Ints, RowsOf
from monoeval.errors import UsageError


class NoClassesError(UsageError):
    """Images that are not told apart by classes."""


@dataclass(frozen=True)
class Source:
    """One split of a folder or a table.

    `labels` are positions in `names`, −1 where a row has none. `names` of two splits of one data set may differ
    (a folder lacks a class); they are matched by name. `keys` are content hashes, in row or file order.
    `domain` are positions in `domains`; `groups` name what rows belong together.
    """

    labels: Ints  # [N]
    names: tuple[str, ...]
    ids: NDArray[np.str_]  # [N]
    keys: Sequence[str]
    read: Callable[[int], Image]
    domains: tuple[str, ...] = ()
    domain: Ints | None = None  # [N]
    groups: NDArray[np.str_] | None = None  # [N]

    @property
    def domains_here(self) -> tuple[str, ...]:
        """The domains that have rows."""
        present = set() if self.domain is None else set(self.domain.tolist())
        return tuple(name for place, name in enumerate(self.domains) if place in present)

    def take(self, rows: Ints) -> "Source":
        """Only `rows` [n]; the keys stay, as one of a file may be of many rows."""
        return replace(
            self,
            labels=self.labels[rows],
            ids=self.ids[rows],
            read=RowsOf(self.read, rows),
            domain=None if self.domain is None else self.domain[rows],
            groups=None if self.groups is None else self.groups[rows],
        )


def parquet_files(root: Path) -> Iterator[Path]:
    """The parquet files under `root`, but for hidden ones and those of runs that were started there."""
    for path in root.rglob("*.parquet"):
        if not path.name.startswith(".") and not (path.parent.parent / "results.jsonl").exists():
            yield path


def holds_runs(folder: Path) -> bool:
    """Whether `folder` is one that runs are written to."""
    return folder.name == "runs" and next(folder.glob("*/results.jsonl"), None) is not None


def together(parts: Mapping[str, Source]) -> Source:
    """One source of several domains; classes are matched by name, so that domains may lack some."""
    names = tuple(dict.fromkeys(name for part in parts.values() for name in part.names))
    labels = [
        np.where(part.labels < 0, -1, np.array([names.index(n) for n in part.names], dtype=np.int64)[part.labels])
        for part in parts.values()
    ]
    sizes = [len(some) for some in labels]
    groups = [part.groups for part in parts.values() if part.groups is not None]
    return Source(
        labels=np.concatenate(labels),
        names=names,
        ids=np.concatenate([part.ids for part in parts.values()]),
        keys=[key for part in parts.values() for key in part.keys],
        read=_Joined(tuple(part.read for part in parts.values()), tuple(np.cumsum([0, *sizes]).tolist())),
        domains=tuple(parts),
        domain=np.repeat(np.arange(len(sizes)), sizes),
        groups=np.concatenate(groups) if len(groups) == len(parts) else None,
    )


@dataclass(frozen=True)
class _Joined:
    """Reads rows of several sources, one after the other; `starts` are the first row of each, and the end."""

    reads: tuple[Callable[[int], Image], ...]
    starts: tuple[int, ...]

    def __call__(self, row: int) -> Image:
        part = bisect_right(self.starts, row) - 1
        return self.reads[part](row - self.starts[part])


Splits = dict[str, Callable[[], Source]]
"""Splits by name; a split is read when it is chosen, as sources may have large ones that nobody asked for."""
