"""Images in arrays on disk, of which only what is looked at is read."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Image
from monoeval.errors import MonoevalError


def array(path: Path) -> NDArray[np.generic]:
    """The array in a `.npy` file, mapped into memory; raises MonoevalError where it is none."""
    try:
        found: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MonoevalError(f"{path} cannot be read as an array ({error}): download it again.") from error
    return found


@lru_cache(maxsize=64)
def mapped(path: str) -> NDArray[np.generic]:
    """`array`, once in a process."""
    return array(Path(path))


def row_of(path: str, row: int) -> Image:
    """A copy of image `row` of the uint8 array [N, H, W, 3] in a file."""
    return np.array(mapped(path)[row], dtype=np.uint8)
