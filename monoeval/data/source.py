"""What a loader finds before splits are chosen: rows with raw labels, not yet class positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Image, Ints


@dataclass(frozen=True)
class Source:
    """One split of a folder or a table.

    `labels` are positions in `names`, −1 where a row has none. `names` of two splits of one data set may differ
    (a folder lacks a class); they are matched by name. `keys` are content hashes, in row or file order.
    """

    labels: Ints  # [N]
    names: tuple[str, ...]
    ids: NDArray[np.str_]  # [N]
    keys: Sequence[str]
    read: Callable[[int], Image]


Splits = dict[str, Callable[[], Source]]
"""Splits by name; a split is read when it is chosen, as sources may have large ones that nobody asked for."""
